"""The CustomResourceDefinition, made from the types."""

from typing import Any

from llava_api.constants import GROUP, KIND, PLURAL, SHORT_NAME, SINGULAR, VERSION
from llava_api.resource import LlavaFineTune
from llava_api.schema import build_schema
from llava_api.status import UNOBSERVED

_READY = '.status.conditions[?(@.type=="Ready")]'
PRINTER_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("Phase", "string", ".status.phase"),
    ("Reason", "string", f"{_READY}.reason"),
    ("Stage", "string", ".status.summary.stage"),
    ("Step", "string", ".status.summary.step"),
    ("Percent", "string", ".status.summary.percent"),
    ("ETA", "string", ".status.summary.eta"),
    ("Score", "string", ".status.summary.score"),
    ("Age", "date", ".metadata.creationTimestamp"),
)
"""Name, type and JSONPath of what ``kubectl get`` shows."""
WIDE_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("Attempt", "string", ".status.summary.attempt"),
    ("Restarts", "string", ".status.summary.restarts"),
    ("Message", "string", f"{_READY}.message"),
)
"""The same, of what it shows with ``-o wide`` only."""


def build_crd() -> dict[str, Any]:
    """The CustomResourceDefinition as a plain object."""
    schema = build_schema(LlavaFineTune)
    # The API server has its own schema for these; rules may read metadata.name all the same.
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["required"] = ["spec"]
    # kstatus (Flux, Helm) would take a run for finished that nobody has looked at.
    schema["properties"]["status"]["default"] = {"observedGeneration": UNOBSERVED}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            # An uninstall must not delete everyone's runs with it.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path} for name, kind, path in PRINTER_COLUMNS
                    ]
                    + [
                        {"name": name, "type": kind, "jsonPath": path, "priority": 1}
                        for name, kind, path in WIDE_COLUMNS
                    ],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }
