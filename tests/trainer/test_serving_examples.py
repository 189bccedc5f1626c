"""What the report tells people to serve the model with is the example of manifests/serving, filled in."""

import pytest
import yaml

from llava_trainer.evaluation.page import build_evaluation_markdown, build_evaluation_page
from llava_trainer.evaluation.serving import list_served
from llava_trainer.pages.rendering import code
from tests.rendering import ROOT
from tests.trainer.destinations import ADDRESSES, make_config
from tests.trainer.report_pages import NASTY, Page, make_answer, make_content

SERVING = ROOT / "manifests" / "serving"


def read_env(text: str) -> dict[str, str]:
    return dict(line.split("=", maxsplit=1) for line in text.splitlines())


def address_of(text: str) -> str:
    return str(yaml.safe_load(text)["spec"]["predictor"]["model"]["storageUri"])


@pytest.mark.parametrize(("address", "uri"), ADDRESSES.items())
def test_destinations_come_first_in_kserves_words(address: str, uri: str) -> None:
    published, own = list_served(make_config(address))
    assert address_of(published.inference_service) == uri
    assert published.place == f"{address}, once it is published"
    assert address_of(own.inference_service) == "pvc://trays-run/attempts/merge-1/merged"
    assert bool(published.env) is address.startswith("pvc://"), "the plain example mounts claims alone"


def test_it_is_the_example_filled_in() -> None:
    example = yaml.safe_load((SERVING / "kserve" / "inference-service.yaml").read_text())
    (own,) = list_served(make_config(name="invoices"))
    assert yaml.safe_load(own.inference_service) == example
    told = read_env((SERVING / "vllm" / "serving.env").read_text())
    assert read_env(own.env) == {**told, "MODEL_FOLDER": "attempts/merge-1/merged"}


def test_where_the_model_is_not_published_only_the_volume_is_left() -> None:
    (own,) = list_served(make_config("s3://models/invoices", what="adapter"))
    assert address_of(own.inference_service).startswith("pvc://trays-run/")


def test_on_a_claim_that_was_there_before_its_name_is_left_to_the_reader() -> None:
    (own,) = list_served(make_config(root="/llava/run/runs/0c6f"))
    assert address_of(own.inference_service) == "pvc://CLAIM/runs/0c6f/attempts/merge-1/merged"
    assert read_env(own.env)["MODEL_FOLDER"] == "runs/0c6f/attempts/merge-1/merged"


def test_both_reports_end_with_it() -> None:
    served = list_served(make_config("s3://models/invoices"))
    content = make_content([make_answer(str(n)) for n in range(9)], served=served)
    page = Page(build_evaluation_page(content))
    texts = "".join(page.texts)
    for one in served:
        assert one.inference_service.strip() in texts
    text = build_evaluation_markdown(content)
    assert text.index("## Serving it") > text.index("## Dataset, settings, manifest")
    fenced = text.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(fenced) == yaml.safe_load(served[0].inference_service)
    assert "MODEL_FOLDER=attempts/merge-1/merged\n" in text.split("```sh\n")[1].split("```")[0]
    without = build_evaluation_markdown(make_content([]))
    assert "Serving it" not in without


def test_names_of_others_stay_one_value() -> None:
    hostile = f'a"\nkind: Pod\n```\n{NASTY}'
    served = list_served(make_config(f"s3://models/{hostile}", name=hostile))
    made = yaml.safe_load(served[0].inference_service)
    assert (made["kind"], made["metadata"]["name"]) == ("InferenceService", hostile)
    content = make_content([make_answer("1")], served=served)
    assert "<script>alert" not in build_evaluation_page(content)
    fences = [line for line in build_evaluation_markdown(content).splitlines() if line.startswith("```")]
    assert fences == ["```yaml", "```", "```yaml", "```", "```sh", "```"]


def test_no_line_ends_a_fence() -> None:
    assert code("a: b\n") == "a: b"
    assert code("a\u202eb") == "a\\u202eb"
    for fence in ("```", "   ~~~ x"):
        with pytest.raises(ValueError, match="fence"):
            code(f"a\n{fence}\nb")
