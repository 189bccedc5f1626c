"""The CRD's schema: structural, bounded, described; the public surface changes only on purpose."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from llava_api import generate
from llava_api.crd import PRINTER_COLUMNS, WIDE_COLUMNS, build_crd
from llava_api.generate import build_files
from llava_api.reference import build_reference
from llava_api.rules import RULES_KEY, rule, rules
from llava_api.schema import build_schema
from llava_api.spec import Dataset, MixturePart, Training
from llava_monitoring import generate as monitoring
from llava_operator.telemetry import metrics_page

ROOT = Path(__file__).parents[2]
SURFACE = Path(__file__).parent / "fields.txt"
NOT_STRUCTURAL = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "propertyNames", "definitions"}


def crd_schema() -> dict[str, Any]:
    return build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")


def nodes() -> list[tuple[str, dict[str, Any]]]:
    properties = crd_schema()["properties"]
    return [*walk(properties["spec"], "spec"), *walk(properties["status"], "status")]


FILES = build_files() | metrics_page.build_files()


@pytest.mark.parametrize(("path", "content"), FILES.items(), ids=lambda value: str(value)[:60])
def test_generated_files_are_fresh(path: Path, content: str) -> None:
    assert (ROOT / path).read_text() == content, f"{path} is stale: run `make generate`"


@pytest.mark.parametrize("program", [generate, monitoring, metrics_page], ids=lambda program: str(program.__name__))
def test_what_is_made_is_written_below_the_folder_that_is_named(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.argv", ["generate", str(there)])
    program.main()
    written = {path.relative_to(there): path.read_text() for path in there.rglob("*") if path.is_file()}
    assert written == program.build_files()
    assert not list(here.iterdir())


def test_crd_is_small_enough() -> None:
    """``kubectl apply`` keeps it as JSON in an annotation, of which all together may take 262,144 bytes."""
    for path, content in build_files().items():
        if path.suffix == ".yaml":
            assert len(json.dumps(yaml.safe_load(content))) < 200_000


def test_schema_is_structural() -> None:
    for path, node in nodes():
        assert not NOT_STRUCTURAL & node.keys(), path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not (node.get("properties") and node.get("additionalProperties")), path


def test_every_string_list_and_map_is_bounded() -> None:
    for path, node in nodes():
        if node.get("type") == "string" or node.get("x-kubernetes-int-or-string"):
            assert "maxLength" in node or "enum" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path


def test_every_number_of_the_spec_is_bounded() -> None:
    for path, node in nodes():
        if node.get("type") in ("integer", "number") and path.startswith("spec"):
            assert {"minimum", "maximum"} <= node.keys(), path


def test_every_field_is_described() -> None:
    for path, node in nodes():
        if not path.endswith(("[]", "{}")):
            assert len(node.get("description", "")) > 10, path


def test_rule_messages_say_what_would_be_right() -> None:
    found = [rule_ for _, node in nodes() for rule_ in node.get(RULES_KEY, [])]
    assert len(found) > 15
    for made in found:
        assert len(made["message"]) > 30, made


def test_printer_columns_show_existing_fields() -> None:
    paths = {path for path, _ in nodes()} | {"metadata.creationTimestamp"}
    assert [name.upper() for name, _, _ in PRINTER_COLUMNS] == [
        "PHASE", "REASON", "STAGE", "STEP", "PERCENT", "ETA", "SCORE", "AGE",
    ]  # fmt: skip
    assert [name.upper() for name, _, _ in WIDE_COLUMNS] == ["ATTEMPT", "RESTARTS", "MESSAGE"]
    shown = {path.lstrip(".").replace('[?(@.type=="Ready")]', "[]") for _, _, path in (*PRINTER_COLUMNS, *WIDE_COLUMNS)}
    assert shown <= paths


def test_public_surface_is_frozen() -> None:
    """A field that goes or changes its type breaks manifests: do it on purpose, by changing fields.txt with it."""
    surface = [f"{path}: {node.get('type', 'quantity')}" for path, node in nodes()]
    assert surface == SURFACE.read_text().splitlines()


class Inner(BaseModel):
    """Inner."""

    size: int = 3
    name: Annotated[str | None, Field(max_length=5)] = None


class Outer(BaseModel):
    """Outer."""

    inner: Annotated[Inner, Field(description="Of the field.", json_schema_extra=rules(rule("true", "of the field")))]
    changed: Inner = Inner(size=4)
    unchanged: Inner = Inner()
    share: Annotated[float, Field(gt=0, lt=1)]
    only: Literal["one"] = "one"


def test_translation_inlines_and_keeps_what_is_nearest() -> None:
    properties = build_schema(Outer)["properties"]
    assert properties["inner"]["description"] == "Of the field."
    assert properties["inner"][RULES_KEY] == [{"rule": "true", "message": "of the field"}]
    assert properties["inner"]["properties"]["size"] == {"type": "integer", "format": "int64", "default": 3}
    assert properties["inner"]["properties"]["name"] == {"type": "string", "maxLength": 5, "nullable": True}


def test_translation_of_defaults_bounds_and_constants() -> None:
    properties = build_schema(Outer)["properties"]
    assert properties["changed"]["default"] == {"size": 4}
    assert properties["unchanged"]["default"] == {}
    share = properties["share"]
    assert (share["minimum"], share["exclusiveMinimum"]) == (0, True)
    assert (share["maximum"], share["exclusiveMaximum"]) == (1, True)
    assert properties["only"] == {"type": "string", "enum": ["one"], "default": "one"}


def test_translation_refuses_unions() -> None:
    class Union(BaseModel):
        either: int | str

    with pytest.raises(ValueError, match="union of 2 types"):
        build_schema(Union)


def test_the_reference_writes_fields_as_they_are_written_and_leaves_out_what_tells_nothing() -> None:
    reference = build_reference()
    assert "`languageModel` needs visionTower" in reference
    assert "LanguageModel" not in reference
    assert str(2**40) not in reference


def test_examples_of_the_data_page_are_specs() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    parts = [yaml.safe_load(example) for example in examples]
    formats = [Dataset.model_validate(part["dataset"]).format for part in parts if "dataset" in part]
    assert formats == ["messages", "table", "table"]
    trainings = [Training.model_validate(part["training"]) for part in parts if "training" in part]
    assert [training.batch.global_ for training in trainings] == ["auto"]
    mixtures = [part["spec"]["mixture"] for part in parts if "spec" in part]
    assert [MixturePart.model_validate(one).share for mixture in mixtures for one in mixture] == [0.2]
