"""The reference page and the schema for editors cover every field."""

from __future__ import annotations

import json

from recipe_kit.recipe import recipe_json_schema, recipe_reference
from recipe_kit.recipe.schema import CLOSED, FILE_KEYS, PASSED_ON


def test_the_page_has_a_row_for_every_field() -> None:
    page = recipe_reference()
    fields = {field for model in CLOSED.values() for field in model.model_fields} | {*FILE_KEYS, "fraction", "rows"}
    assert len(fields) > 40
    assert [field for field in sorted(fields) if f"| `{field}` |" not in page] == []
    assert "| `max_length` | whole number | `1024` | Longest conversation in tokens" in page
    assert "| `id` | text | required | Hub id" in page
    assert page.count("#") >= 13


def test_the_page_names_what_is_refused() -> None:
    assert "| `output_dir` | the kit names run folders; use `--runs-dir` |" in recipe_reference()


def test_the_schema_is_closed_and_describes_everything() -> None:
    schema = recipe_json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert {"extends", "profiles", "name", "training"} <= set(schema["properties"])
    assert schema["else"] == {"required": ["name", "model", "method", "data"]}
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
        assert "required" not in definition
    for name, field in schema["properties"].items():
        assert field["description"], name


def test_the_schema_lists_options_of_the_installed_libraries() -> None:
    sections = {name: recipe_json_schema()["properties"][name]["anyOf"][0] for name in PASSED_ON}
    assert sections["training"]["properties"]["learning_rate"]["type"] == ["number"]
    assert sections["training"]["properties"]["packing"]["type"] == ["boolean"]
    assert "cosine" in sections["training"]["properties"]["lr_scheduler_type"]["enum"]
    assert sections["lora"]["properties"]["r"] == {"type": ["integer"], "description": "Lora attention dimension"}
    assert "bnb_4bit_quant_type" in sections["quantization"]["properties"]
    assert "output_dir" not in sections["training"]["properties"]
    assert all(section["additionalProperties"] is False for section in sections.values())


def test_short_forms_are_in_the_schema() -> None:
    data = recipe_json_schema()["$defs"]["DataSection"]["properties"]
    assert {"type": "string"} in data["formatter"]["anyOf"]
    assert data["train"]["anyOf"][1]["type"] == "array"
