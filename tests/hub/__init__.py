"""A small Hugging Face Hub for tests: two loopback servers that the real huggingface_hub client talks to.

    from hub.server import Hub

    with Hub(tmp_path) as hub:
        token = hub.add_user("acme")
        api = HfApi(endpoint=hub.endpoint, token=token)

`server` is what a test uses, and its docstring lists the operations that can be made to fail. `store` holds
repositories and their commits, `cards` the rules for the metadata of a README.md, `xet` what came through Xet; `wire`
is HTTP, `faults` what goes wrong on purpose; `repositories`, `uploads`, `downloads` and `storage` are the endpoints.
Only models: no data sets, no spaces. What the real Hub does was read off its public answers and its client's source.
"""
