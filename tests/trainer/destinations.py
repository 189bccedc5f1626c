"""Runs with destinations, as far as addresses go; nothing here loads torch."""

from pathlib import Path
from typing import Any

from llava_api.constants import StageName
from llava_api.run_config import RunConfig

ADDRESSES = {
    "s3://models/invoices": "s3://models/invoices",
    "hf://team/invoices@v2": "hf://team/invoices:v2",
    "hf://team/invoices": "hf://team/invoices",
    "oci://registry.example:5000/models/invoices:1": "oci+native://registry.example:5000/models/invoices:1-modelcar",
    "pvc://models/invoices/v2": "pvc://models/invoices/v2",
}
"""Destinations, and what KServe calls them."""


def make_config(
    *addresses: str, root: str = "/llava/run", what: str = "merged", name: str = "trays", **changes: Any
) -> RunConfig:
    """Of evaluation; without addresses nothing is published."""
    fields = {
        "run": {"namespace": "team-a", "name": name, "uid": "0c6f", "stage": StageName.EVALUATE, "attempt": 1},
        "volumeRoot": Path(root),
        "results": dict.fromkeys(StageName, 1),
        "modelDir": Path("/base"),
        "datasetDir": Path("/data"),
        "dataset": {"source": "pvc://trays/", "format": "llava", "file": "export.json"},
        "training": {},
        "workers": {},
        "merge": {},
        "evaluation": {},
        "publish": {"destinations": [{"address": one} for one in addresses], "what": what} if addresses else None,
    }
    return RunConfig.model_validate(fields | changes)
