"""Proves that quantities are read as Kubernetes reads them."""

import pytest

from llava_api.quantities import format_gib, format_quantity, parse_bytes


@pytest.mark.parametrize(
    ("quantity", "size"),
    [("80Gi", 80 * 2**30), ("1.5Gi", 3 * 2**29), ("100M", 10**8), ("1k", 1000), ("500m", 1), ("7", 7), ("1.", 1),
     (".5Ki", 512), ("2Ti", 2**41), ("1P", 10**15)],
)  # fmt: skip
def test_a_quantity_is_a_number_of_bytes(quantity: str, size: int):
    assert parse_bytes(quantity) == size


@pytest.mark.parametrize("text", ["80GiB", "Gi", "eighty", ""])
def test_what_is_no_quantity_is_refused(text: str):
    with pytest.raises(ValueError, match=r"quantity|Fraction"):
        parse_bytes(text)


def test_bytes_for_a_person_and_for_the_api_server():
    assert format_gib(80 * 2**30) == "80.0Gi"
    assert [format_quantity(size) for size in (0, 72 * 2**30, 3 * 2**29, 1000)] == ["0", "72Gi", "1536Mi", "1000"]
