"""No file of a checkpoint is executed or imported, whatever it names and whatever stdin says.

The hostile checkpoint names its code wherever transformers looks for such names, and the code leaves a marker. What is
run on it are the stages themselves, in a process whose stdin answers "y" for ever.
"""

import ast
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer

import llava_trainer
from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_trainer.data.model_config import load_config, read_settings
from llava_trainer.data.processor import load_processor, save_processor
from llava_trainer.errors import StageError
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.importing.tokenizer import import_tokenizer
from tests.trainer.runs import make_run, run_config
from tests.trainer.test_importing import original_7b

AUTO_CLASSES = (
    "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForVision2Seq",
    "AutoImageProcessor", "AutoFeatureExtractor", "AutoProcessor", "AutoVideoProcessor",
)  # fmt: skip
CODE = dict.fromkeys(AUTO_CLASSES, "hostile.Hostile") | {"AutoTokenizer": [None, "hostile.Hostile"]}
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "processor_config.json")

SCRIPT = """
    import pathlib, sys
    from llava_api.run_config import RunConfig
    from llava_trainer.errors import StageError
    from llava_trainer.importing.conversion import import_model
    from llava_trainer.importing.parts import ModelParts
    from llava_trainer.reporting import Reporter
    from llava_trainer.stages import evaluate, merge, prepare

    root = pathlib.Path(sys.argv[1])
    for name in ("pickled", "llava"):
        import_model(ModelParts(source=root / name), root / f"{name}-imported")
        print("done:", name)
    for stage in (prepare, merge, evaluate):
        name = stage.__name__.rpartition(".")[2]
        config = RunConfig.model_validate_json((root / name).read_bytes())
        stage.run(config, Reporter(config))
        print("done:", name)
    config = RunConfig.model_validate_json((root / "prepare").read_bytes())
    try:
        prepare.run(config.model_copy(update={"model_dir": root / "own"}), Reporter(config))
    except StageError as error:
        print("refused:", error)
"""


def run_with_yes(script: str, *arguments: object) -> str:
    """Output of a Python script in a process of its own, to which everything that it asks is answered with yes."""
    with subprocess.Popen(["yes", "y"], stdout=subprocess.PIPE) as answers:
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *map(str, arguments)],
            stdin=answers.stdout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        answers.kill()
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def add_settings(file: Path, **settings: Any) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(found | settings))


def make_hostile(folder: Path, marker: Path) -> None:
    """Name code in every file, and put the code beside it."""
    for name in SETTINGS:
        add_settings(folder / name, auto_map=CODE)
    nested = json.loads((folder / "processor_config.json").read_text())
    nested["image_processor"] |= {"auto_map": CODE}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    config = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        config[part] |= {"auto_map": CODE}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "custom_generate").mkdir()
    code = f"open({str(marker)!r}, 'a').write('ran')\nclass Hostile: pass\ndef generate(*_, **__): pass\n"
    for name in ("hostile.py", "modeling_llava.py", "custom_generate/generate.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(code)
    (folder / "chat_template.jinja").write_text("{% for i in range(10**9) %}{{ i }}{% endfor %}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "more.jinja").write_text("{{ cycler.__init__.__globals__.os.getcwd() }}")


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile code writes: it must not be there in the end."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "code of a checkpoint was run"


def make_hostile_original(root: Path, marker: Path) -> None:
    parts, _ = original_7b(root)
    assert parts.source == root / "llava"
    for name in ("config.json", "tokenizer_config.json"):
        add_settings(parts.source / name, auto_map=CODE)
    (parts.source / "hostile.py").write_text(f"open({str(marker)!r}, 'a').write('ran')")


def make_hostile_pickled(folder: Path, base: Path, marker: Path) -> None:
    shutil.copytree(base, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    make_hostile(folder, marker)


def test_every_stage_goes_on_without_the_code_that_a_checkpoint_names(tmp_path: Path, marker: Path):
    make_run(tmp_path)
    make_hostile_pickled(tmp_path / "pickled", tmp_path / "base", marker)
    make_hostile_original(tmp_path, marker)
    make_hostile(tmp_path / "base", marker)
    shutil.copytree(tmp_path / "base", tmp_path / "own")
    add_settings(tmp_path / "own" / "processor_config.json", image_processor={"auto_map": CODE})
    # Named like this, AutoTokenizer would load the tokenizer by a class that asks anew whether to run the code.
    add_settings(tmp_path / "base" / "tokenizer_config.json", tokenizer_class="AutoModelForCausalLM")
    for stage in (StageName.PREPARE, StageName.MERGE, StageName.EVALUATE):
        changes = {"validation": {"fraction": 0.2}} if stage is StageName.PREPARE else {}
        (tmp_path / stage).write_text(run_config(tmp_path, stage, dataset=changes).model_dump_json())
    output = run_with_yes(SCRIPT, tmp_path)
    done = [line.removeprefix("done: ") for line in output.splitlines() if line.startswith("done: ")]
    assert done == ["pickled", "llava", "prepare", "merge", "evaluate"], output
    refused = f"refused: InvalidModel: {tmp_path / 'own' / 'processor_config.json'}: image_processor.auto_map is"
    assert refused in output, output
    merged = tmp_path / "volume" / "attempts" / "merge-1" / "merged"
    for folder in (merged, tmp_path / "pickled-imported", tmp_path / "llava-imported"):
        assert not list(folder.rglob("*.py"))
    assert [path.name for path in merged.glob("*.json") if "auto_map" in path.read_text()] == []
    assert [path.relative_to(merged).as_posix() for path in merged.rglob("*.jinja")] == ["chat_template.jinja"]
    assert "range(" not in (merged / "chat_template.jinja").read_text()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "image processor of its own": (
        "processor_config.json",
        {"image_processor": {"image_processor_type": "Hostile", "auto_map": CODE}},
        r"processor_config\.json: image_processor\.image_processor_type is 'Hostile', not one of CLIP.*never run",
    ),
    "no image processor at all": (
        "processor_config.json", {"image_processor": "hostile.Hostile"}, r"image_processor is 'hostile\.Hostile', not",
    ),
    "image processor without a type": (
        "preprocessor_config.json",
        {"auto_map": CODE, "crop_size": 56},
        r"preprocessor_config\.json: auto_map is .*hostile.Hostile.*set it to CLIPImageProcessor",
    ),
    "any class of transformers": (
        "preprocessor_config.json",
        {"image_processor_type": "AutoModelForCausalLM", "auto_map": CODE},
        r"image_processor_type is 'AutoModelForCausalLM', not one of",
    ),
    "a type that is no name": (
        "preprocessor_config.json", {"image_processor_type": ["CLIP"]}, r"_type is \['CLIP'\], not one of",
    ),
    "a feature extractor of its own": (
        "preprocessor_config.json", {"feature_extractor_type": "Hostile"}, r"feature_extractor_type is 'Hostile'",
    ),
    "a model of its own": ("config.json", {"model_type": "hostile", "auto_map": CODE}, r"model_type is 'hostile'"),
    "weights of another file": (
        "config.json", {"transformers_weights": "adapter_model.bin"}, r"transformers_weights is 'adapter_model\.bin'",
    ),
    "weights that are quantised": (
        "config.json", {"quantization_config": {"quant_method": "gptq"}}, r"quantization_config is \{'quant_method'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_only_code_of_a_checkpoint_could_read_is_refused_by_file_and_field(
    name: str, toy_model_dir: Path, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    make_hostile(folder, marker)
    file, settings, message = REFUSED[name]
    if file == "preprocessor_config.json":
        # Else transformers reads the image processor's settings in there.
        (folder / "processor_config.json").unlink()
    add_settings(folder / file, **settings)
    with pytest.raises(StageError, match=message) as caught:
        load_processor(folder, "pad")
    assert caught.value.reason is Reason.INVALID_MODEL


@pytest.mark.parametrize("type_name", ["CLIPImageProcessor", "CLIPImageProcessorFast", "LlavaImageProcessorPil", None])
def test_images_are_processed_alike_by_whatever_name_of_clip_s_processor(
    type_name: str | None, toy_model_dir: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    settings = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    (folder / "processor_config.json").unlink()
    settings |= {"image_processor_type": type_name, "image_mean": [0.1, 0.2, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_processor(folder, "pad").image_processor.image_mean == (0.1, 0.2, 0.3)


def test_the_name_of_code_does_not_change_how_a_text_is_cut(toy_model_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    add_settings(folder / "tokenizer_config.json", auto_map=CODE, tokenizer_class="LlamaTokenizer")
    ours = load_processor(folder, "pad")
    exported = tmp_path / "exported"
    exported.mkdir()
    shutil.copy(toy_model_dir / "config.json", exported)
    save_processor(ours, exported)
    plain = AutoTokenizer.from_pretrained(toy_model_dir)
    for tokenizer in (ours.tokenizer, AutoProcessor.from_pretrained(exported).tokenizer):
        assert type(tokenizer) is type(plain)
        assert (
            tokenizer("USER:  two  spaces\nand lines </s>USER").input_ids
            == plain("USER:  two  spaces\nand lines </s>USER").input_ids
        )


@pytest.mark.parametrize("where", [(), ("text_config",), ("vision_config",)], ids="/".join)
def test_attention_is_not_fetched_from_where_a_checkpoint_says(
    where: tuple[str, ...], toy_model_dir: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (config[where[0]] if where else config)["attn_implementation"] = "somebody/kernel"
    (folder / "config.json").write_text(json.dumps(config))
    processor = load_processor(folder, "pad")
    with load_answerer(folder, processor, "cpu", torch.float32) as answerer:
        assert answerer.model.config._attn_implementation == "sdpa"
        assert answerer.model.config.text_config._attn_implementation == "sdpa"


def test_settings_larger_than_any_vocabulary_are_not_read(tmp_path: Path):
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(2**27 + 1)
    with pytest.raises(StageError, match=r"config\.json has 134,217,729 bytes, more than"):
        read_settings(file)


def test_settings_that_are_nested_too_deep_for_transformers_are_refused(toy_model_dir: Path, tmp_path: Path):
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    text = (folder / "config.json").read_text().rstrip().removesuffix("}")
    (folder / "config.json").write_text(text + ', "deep": ' + '{"a":' * 480 + "1" + "}" * 480 + "}")
    with pytest.raises(StageError) as caught:
        load_config(folder)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_no_call_leaves_it_to_transformers_whether_code_may_be_run():
    """Every ``from_pretrained`` names the keywords that forbid it, and no Auto class loads what has one class only."""
    unsafe = []
    for file in sorted(Path(llava_trainer.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] != "from_pretrained":
                continue
            spread = {ast.unparse(word.value) for word in call.keywords if word.arg is None}
            if not spread & {"NO_CODE", "AS_DATA"}:
                unsafe.append(f"{file.name}: {ast.unparse(call.func)}")
    # The adapter is the run's own, and PEFT has no code of adapters to run.
    assert unsafe == ["reference.py: LoraConfig.from_pretrained", "loading.py: PeftModel.from_pretrained"]


def drop_special_token(settings: dict[str, Any]) -> None:
    """Have the tokenizers library panic, which is no Exception, as soon as a text is cut."""
    settings["post_processor"]["special_tokens"].pop("<s>")


def misname_model(settings: dict[str, Any]) -> None:
    settings["model"]["type"] = "Nonsense"


@pytest.mark.parametrize("damage", [drop_special_token, misname_model])
def test_a_tokenizer_that_a_library_cannot_use_is_named(
    damage: Callable[[dict[str, Any]], None], toy_model_dir: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    settings = json.loads((folder / "tokenizer.json").read_text())
    damage(settings)
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    for read in (lambda: load_processor(folder, "pad"), lambda: import_tokenizer((folder,))):
        with pytest.raises(StageError, match=r"tokenizer\.json cannot be used: ") as caught:
            read()
        assert caught.value.reason is Reason.INVALID_MODEL
