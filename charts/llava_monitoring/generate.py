"""``python -m llava_monitoring.generate``: writes every file that is made from this package."""

import sys
from pathlib import Path


def build_files() -> dict[Path, str]:
    """Content of every generated file, by its path from the repository's root."""
    return {}


def main() -> None:
    """Write the files below the folder named as the only argument, or the current one."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for path, content in build_files().items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)


if __name__ == "__main__":
    main()
