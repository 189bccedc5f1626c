"""``python -m llava_api.generate``: writes every file that is made from the types.

It needs PyYAML, which only development environments have.
"""

from pathlib import Path

import yaml

from llava_api.constants import GROUP, PLURAL
from llava_api.crd import build_crd
from llava_api.failures_page import build_failures_page
from llava_api.generated import write_files
from llava_api.reference import build_reference
from llava_api.run_event import VERSION, build_event_schema

_HEADER = "# Made from crds/llava_api by `make generate`: change the types, not this file.\n"


def build_files() -> dict[Path, str]:
    """Content of every generated file, by its path from the repository's root."""
    crd = _HEADER + yaml.safe_dump(build_crd(), sort_keys=False, width=110, allow_unicode=True)
    return {
        Path("crds") / f"{GROUP}_{PLURAL}.yaml": crd,
        Path("charts/llava-finetune-operator/files/crd.yaml"): crd,
        Path("docs/api.md"): build_reference(),
        Path("docs/failures.md"): build_failures_page(),
        Path(f"docs/run-event.v{VERSION}.json"): build_event_schema(),
    }


def main() -> None:
    """Write them."""
    write_files(build_files())


if __name__ == "__main__":
    main()
