"""docs/evaluation-metrics.v1.json, the JSON schema of metrics.json: ``python -m llava_trainer.evaluation.schema``.

Version 1 only grows: a field that goes or changes its meaning is version 2, in a file of its own.
"""

import json
from pathlib import Path
from typing import Any

from llava_api.generated import write_files
from llava_trainer.evaluation.scores import Metrics

FILE = Path("docs/evaluation-metrics.v1.json")


def build_metrics_schema() -> str:
    """The schema, of what is written; open, so that it fits what a later image writes too."""
    schema: dict[str, Any] = _open(Metrics.model_json_schema(mode="serialization"))
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _open(schema: Any) -> Any:
    """Without ``additionalProperties: false``, which types have that are read strictly elsewhere."""
    if isinstance(schema, list):
        return [_open(item) for item in schema]
    if isinstance(schema, dict):
        return {key: _open(value) for key, value in schema.items() if (key, value) != ("additionalProperties", False)}
    return schema


def main() -> None:
    """Write it."""
    write_files({FILE: build_metrics_schema()})


if __name__ == "__main__":
    main()
