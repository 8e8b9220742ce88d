"""Turns of a conversation, as tests write them."""


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **marks):
    return {"role": "assistant", "content": text, **marks}
