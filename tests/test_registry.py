import subprocess
import sys
import threading
from pathlib import Path

import pytest

from recipe_kit.errors import RegistryError
from recipe_kit.registry import Registry

GROUP = "recipe_kit_tests.greetings"


def hello() -> str:
    return "hello"


def goodbye() -> str:
    return "goodbye"


@pytest.fixture
def registry() -> Registry:
    return Registry("greeting", GROUP)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with one module and entry points on the path, as an installer would."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, entry_points: dict[str, str], source: str = "") -> None:
        module = package.replace("-", "_")
        info = tmp_path / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        lines = "".join(f"{name} = {target}\n" for name, target in entry_points.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def test_a_decorated_function_is_found_by_its_name_and_unchanged(registry):
    assert registry.register("hello")(hello) is hello
    assert registry.get("hello") is hello


def test_a_string_is_imported_when_it_is_asked_for(registry, install):
    install("lazy-greeting", {}, "def hi(): return 'hi'")
    registry.add("hi", "lazy_greeting:hi")
    assert registry.names() == ["hi"]
    assert "lazy_greeting" not in sys.modules
    assert registry.get("hi")() == "hi"


def test_module_and_attribute_need_no_registration(registry):
    assert registry.get(f"{__name__}:hello") is hello


def test_threads_asking_at_once_get_the_same_object(registry, install):
    install("slow-greeting", {"slow": "slow_greeting:slow"}, "import time\ntime.sleep(0.05)\ndef slow(): ...")
    found = []
    threads = [threading.Thread(target=lambda: found.append(registry.get("slow"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_registering_the_same_target_again_changes_nothing(registry):
    registry.add("hello", hello)
    registry.add("hello", hello)
    registry.add("hello", f"{__name__}:hello")
    assert registry.get("hello") is hello


def test_a_cell_run_twice_replaces_its_own_function(registry):
    for answer in ("1", "2"):
        cell: dict = {"__name__": "__main__"}
        exec(f"def f(): return {answer!r}", cell)
        registry.add("f", cell["f"])
    assert registry.get("f")() == "2"


def test_two_lambdas_are_two_targets(registry):
    registry.add("x", lambda: 1)
    with pytest.raises(RegistryError, match="claimed by"):
        registry.add("x", lambda: 2)


def test_another_target_under_a_taken_name_is_refused_with_both_places(registry):
    registry.add("hello", hello)
    with pytest.raises(
        RegistryError, match=r"'hello' is claimed by .*test_registry.py:\d+ and by .*test_registry.py:\d"
    ):
        registry.add("hello", goodbye)
    assert registry.get("hello") is hello


def test_a_name_with_a_colon_is_refused(registry):
    with pytest.raises(RegistryError, match="a greeting name has no colon, got 'a:b'"):
        registry.add("a:b", hello)


def test_an_entry_point_is_listed_without_import_and_found_by_its_name(registry, install):
    install("polite", {"bow": "polite:bow"}, "def bow(): return 'bow'")
    assert registry.names() == ["bow"]
    assert registry.origin("bow") == "package polite 1.2 (polite:bow)"
    assert "polite" not in sys.modules
    assert registry.get("bow")() == "bow"


def test_a_plugin_that_also_registers_itself_on_import_does_not_collide(registry, install):
    install("self-made", {"wave": "self_made:wave"}, "def wave(): ...")
    function = registry.get("wave")
    registry.add("wave", function)
    assert registry.get("wave") is function
    assert registry.origin("wave") == "package self-made 1.2 (self_made:wave)"


def test_an_entry_point_to_a_re_exported_function_does_not_collide(registry, install):
    install("outer", {"nod": "outer:nod"}, "from inner import nod")
    install("inner", {}, "def nod(): ...")
    function = registry.get("nod")
    registry.add("nod", function)
    assert registry.get("nod") is function


def test_an_entry_point_named_like_a_registered_name_is_refused_only_when_that_name_is_asked_for(registry, install):
    install("greedy", {"messages": "greedy:mine", "other": "greedy:other"}, "def mine(): ...\ndef other(): ...")
    registry.add("messages", "recipe_kit.formatters.chat:messages")
    registry.add("hello", hello)
    assert registry.get("hello") is hello
    assert registry.get("other").__name__ == "other"
    assert registry.names() == ["hello", "messages", "other"]
    with pytest.raises(RegistryError, match=r"package recipe-kit \S+ \(recipe_kit.*\) and by package greedy 1.2"):
        registry.get("messages")
    assert registry.get("greedy:mine").__name__ == "mine"


def test_a_plugin_that_collides_on_import_still_gives_its_other_names(registry, install):
    install("loud", {"hello": "loud:hello", "shout": "loud:shout"}, "def hello(): ...\ndef shout(): ...")
    registry.add("hello", hello)
    registry.add("hello", registry.get("loud:hello"))  # what a decorator in the plugin's module does
    assert registry.get("shout").__name__ == "shout"
    with pytest.raises(RegistryError, match="and by package loud"):
        registry.get("hello")


def test_two_packages_that_claim_one_name_are_both_named(registry, install):
    install("first", {"hi": "first:hi"}, "def hi(): ...")
    install("second", {"hi": "second:hi"}, "def hi(): ...")
    with pytest.raises(RegistryError) as error:
        registry.get("hi")
    assert "package first 1.2 (first:hi)" in str(error.value)
    assert "package second 1.2 (second:hi)" in str(error.value)
    assert registry.origin("hi").count("package") == 2


def test_a_plugin_whose_import_fails_is_not_called_unknown(registry, install):
    install("broken", {"oops": "broken:oops"}, "import no_such_library")
    with pytest.raises(RegistryError) as error:
        registry.get("oops")
    assert str(error.value) == (
        "the import of the greeting package broken 1.2 (broken:oops) failed: "
        "ModuleNotFoundError: No module named 'no_such_library'"
    )
    assert isinstance(error.value.__cause__, ModuleNotFoundError)


def test_a_missing_attribute_names_the_nearest_one(registry):
    with pytest.raises(RegistryError, match=f"module {__name__} has no 'helo'; did you mean hello"):
        registry.get(f"{__name__}:helo")


def test_a_module_that_is_not_on_the_path_says_so(registry):
    with pytest.raises(RegistryError, match=r"No module named 'my_greetings'\. Is its folder on PYTHONPATH"):
        registry.get("my_greetings:hi")


@pytest.mark.parametrize("name", [":", "a:", ":a"])
def test_half_a_path_is_refused(registry, name):
    with pytest.raises(RegistryError, match="a greeting is written 'module:attr'"):
        registry.get(name)


def test_an_unknown_name_gets_the_nearest_the_list_and_the_way_plugins_travel(registry):
    registry.add("hello", hello)
    registry.add("goodbye", goodbye)
    with pytest.raises(RegistryError) as error:
        registry.get("helo")
    assert str(error.value) == (
        "unknown greeting 'helo'; did you mean hello? Known: goodbye, hello. Training starts fresh processes, so a "
        f"greeting of your own is found as an entry point of the group '{GROUP}' or as 'module:attr'."
    )


def test_the_origin_of_a_local_function_is_its_file_and_line(registry, monkeypatch):
    registry.add("hello", hello)
    line = hello.__code__.co_firstlineno
    monkeypatch.chdir(Path(__file__).parent)
    assert registry.origin("hello") == f"test_registry.py:{line}"


def test_a_copy_sees_packages_installed_since_and_keeps_its_own_names(registry, install):
    registry.add("hello", hello)
    assert registry.names() == ["hello"]
    install("late", {"late": "late:late"}, "def late(): ...")
    copy = registry.copy()
    copy.add("goodbye", goodbye)
    assert copy.names() == ["goodbye", "hello", "late"]
    assert registry.names() == ["hello"]


def test_importing_the_registry_does_not_look_for_entry_points():
    code = "import sys, recipe_kit.registry; print('importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
