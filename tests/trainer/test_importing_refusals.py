"""What cannot be converted is refused before anything is written, with the file, what is wrong and the fix.

Pickles that carry code are refused without running it.
"""

import functools
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from llava_api.failures import Reason
from llava_trainer.data.processor import Processor
from llava_trainer.errors import StageError
from llava_trainer.importing import ModelParts, conversion, import_model
from llava_trainer.importing.tokenizer import ImportedTokenizer
from llava_trainer.importing.vocabulary import MAX_VOCABULARY_BYTES, convert_vocabulary
from llava_trainer.tensors.stored import find_stored
from tests.trainer.originals import (
    build,
    llama_settings,
    llava_settings,
    sentencepiece_model,
    write_language_model,
    write_settings,
    write_tokenizer,
    write_tower,
    write_weights,
)
from tests.trainer.test_importing import original_7b, original_13b, write_projector

Edit = Callable[[Path, ModelParts], ModelParts | None]


tiny = functools.cache(build)


class Code:
    """Pickled, it asks for a file to be made when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def settings(**changes: Any) -> Edit:
    """Change config.json of the source; None takes a key away."""

    def edit(root: Path, parts: ModelParts) -> None:
        path = root / "llava" / "config.json"
        known = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in known.items() if value is not None}))

    return edit


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Edit:
    """Change the source's weights, written as one file of safetensors."""

    def edit(root: Path, parts: ModelParts) -> None:
        for file in (root / "llava").glob("pytorch_model*"):
            file.unlink()
        changed = tiny().weights()
        change(changed)
        write_weights(root / "llava", changed)

    return edit


def put(name: str, content: bytes) -> Edit:
    return lambda root, parts: (root / "llava" / name).write_bytes(content) and None


def remove(pattern: str) -> Edit:
    def edit(root: Path, parts: ModelParts) -> None:
        for file in (root / "llava").glob(pattern):
            file.unlink()

    return edit


def shorten(root: Path, parts: ModelParts) -> None:
    file = root / "llava" / "pytorch_model-00002-of-00002.bin"
    file.write_bytes(file.read_bytes()[:-2000])


def code_in_a_shard(root: Path, parts: ModelParts) -> None:
    file = root / "llava" / "pytorch_model-00001-of-00002.bin"
    torch.save({"model.norm.weight": Code(root / "ran")}, file)


def code_in_hub_layout(root: Path, parts: ModelParts) -> None:
    write_settings(root / "llava", {"model_type": "llava", "text_config": {}, "vision_config": {}})
    code_in_a_shard(root, parts)


def old_pickle_with_code(root: Path, parts: ModelParts) -> None:
    """The format before PyTorch 1.6 is a bare pickle."""
    (root / "llava" / "pytorch_model-00001-of-00002.bin").write_bytes(pickle.dumps(Code(root / "ran"), protocol=2))


def index_out_of_the_folder(root: Path, parts: ModelParts) -> None:
    places = {"weight_map": {"lm_head.weight": "../secret.bin"}}
    (root / "llava" / "pytorch_model.bin.index.json").write_text(json.dumps(places))


def index_of_more(root: Path, parts: ModelParts) -> None:
    path = root / "llava" / "pytorch_model.bin.index.json"
    content = json.loads(path.read_text())
    content["weight_map"]["model.more.weight"] = "pytorch_model-00001-of-00002.bin"
    path.write_text(json.dumps(content))


def with_tower(**changes: Any) -> Edit:
    def edit(root: Path, parts: ModelParts) -> ModelParts:
        return ModelParts(source=parts.source, vision_tower=write_tower(root / "clip", tiny(), **changes))

    return edit


def with_tower_of_siglip(root: Path, parts: ModelParts) -> ModelParts:
    tower = write_tower(root / "clip", tiny())
    write_settings(tower, {"model_type": "siglip_vision_model"})
    return ModelParts(source=parts.source, vision_tower=tower)


def with_images_of_another_size(root: Path, parts: ModelParts) -> ModelParts:
    tower = write_tower(root / "clip", tiny())
    (tower / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 224, "width": 224}}))
    return ModelParts(source=parts.source, vision_tower=tower)


def with_projector(**told: Any) -> Edit:
    def edit(root: Path, parts: ModelParts) -> ModelParts:
        return ModelParts(source=parts.source, projector=write_projector(root / "p", tiny().projector, **told))

    return edit


def with_wide_projector(root: Path, parts: ModelParts) -> ModelParts:
    wide = torch.nn.Sequential(torch.nn.Linear(96, 48), torch.nn.GELU(), torch.nn.Linear(48, 48))
    return ModelParts(source=parts.source, projector=write_projector(root / "p", wide))


def with_pickle(make: Callable[[], Any]) -> Edit:
    def edit(root: Path, parts: ModelParts) -> ModelParts:
        torch.save(make(), root / "mm_projector.bin")
        return ModelParts(source=parts.source, projector=root / "mm_projector.bin")

    return edit


def with_empty_projector_folder(root: Path, parts: ModelParts) -> ModelParts:
    (root / "p").mkdir()
    return ModelParts(source=parts.source, projector=root / "p")


def as_delta_of_another(root: Path, parts: ModelParts) -> ModelParts:
    base = write_language_model(root / "llama", tiny())
    narrow = {name: tensor[:2] for name, tensor in tiny().language_weights().items()}
    for file in base.glob("pytorch_model*"):
        file.unlink()
    return ModelParts(source=parts.source, base=write_weights(base, narrow))


def whole_original_with_base(root: Path, parts: ModelParts) -> ModelParts:
    """Named as if it were a delta or a LoRA: added up, the two would give a model of noise."""
    return ModelParts(source=parts.source, base=write_language_model(root / "vicuna", build(seed=1)))


def whole_with_base(root: Path, parts: ModelParts) -> ModelParts:
    hub = write_settings(root / "hub", {"model_type": "llava", "text_config": {}, "vision_config": {}})
    return ModelParts(source=hub, base=root / "llama", projector=root / "p")


def hub_with_tower(root: Path, parts: ModelParts) -> ModelParts:
    hub = write_settings(root / "hub", {"model_type": "llava", "text_config": {}, "vision_config": {}})
    return ModelParts(source=hub, vision_tower=root / "clip")


def hub_in_pickles(
    change: Callable[[Path, dict[str, torch.Tensor]], Any], projector: dict[str, Any] | None = None
) -> Edit:
    """A model in hub layout, in one pickle, with something wrong in its folder or its weights."""

    def edit(root: Path, parts: ModelParts) -> ModelParts:
        hub = import_model(parts, root / "hub").model_dir
        tensors = load_file(hub / "model.safetensors")
        (hub / "model.safetensors").unlink()
        change(hub, tensors)
        write_weights(hub, tensors, pickled=True)
        part = None if projector is None else write_projector(root / "p", tiny().projector, **projector)
        return ModelParts(source=hub, projector=part)

    return edit


def tuned_tower_left_out(root: Path, parts: ModelParts) -> ModelParts:
    weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if "vision_tower" in name])(root, parts)
    settings(unfreeze_mm_vision_tower=True)(root, parts)
    return ModelParts(source=parts.source, vision_tower=write_tower(root / "clip", tiny()))


def language_model_as_source(root: Path, parts: ModelParts) -> ModelParts:
    return ModelParts(source=write_language_model(root / "llama", tiny()))


def llava_as_language_model(root: Path, parts: ModelParts) -> ModelParts:
    return ModelParts(language_model=parts.source, vision_tower=write_tower(root / "clip", tiny()))


def without_tower(root: Path, parts: ModelParts) -> ModelParts:
    return ModelParts(language_model=write_language_model(root / "llama", tiny()))


def projector_folder_alone(root: Path, parts: ModelParts) -> None:
    remove("pytorch_model*")(root, parts)
    torch.save(tiny().projector_weights(), root / "llava" / "mm_projector.bin")


def lora_folder(adapter: dict[str, Any] | None = None, *, drop: str = "", rank: int = 2, **told: Any) -> Edit:
    """A LoRA folder on a language model, with something wrong."""

    def edit(root: Path, parts: ModelParts) -> ModelParts:
        folder = write_settings(root / "lora", llava_settings(tiny()))
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"} | told
        (folder / "adapter_config.json").write_text(json.dumps(config))
        prefix = "base_model.model.model.layers.0.self_attn.q_proj"
        pair = {f"{prefix}.lora_A.weight": torch.ones(rank, 48), f"{prefix}.lora_B.weight": torch.ones(48, 2)}
        torch.save(adapter or pair, folder / "adapter_model.bin")
        torch.save(tiny().projector_weights(), folder / "non_lora_trainables.bin")
        if drop:
            (folder / drop).unlink()
        base, tower = write_language_model(root / "base", tiny()), write_tower(root / "clip", tiny())
        return ModelParts(source=folder, base=base, vision_tower=tower)

    return edit


def lora_alone(root: Path, parts: ModelParts) -> ModelParts:
    return ModelParts(source=lora_folder()(root, parts).source)  # type: ignore[union-attr]


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = torch.nan


LORA_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
REFUSED: dict[str, tuple[Edit, str]] = {
    "code in a shard": (code_in_a_shard, r"pytorch_model-00001-of-00002\.bin is refused: a pickle may run code"),
    "code in hub layout": (code_in_hub_layout, r"00001-of-00002\.bin is refused: a pickle may run code"),
    "an old pickle with code": (old_pickle_with_code, r"00001-of-00002\.bin is refused: a pickle may run code"),
    "a shard cut off": (shorten, r"pytorch_model-00002-of-00002\.bin (cannot be read|is refused)"),
    "a shard missing": (remove("*-00001-*"), r"00001-of-00002\.bin does not exist: fetch the whole"),
    "an index that leads out": (index_out_of_the_folder, r"'\.\./secret\.bin' must be a file of the same folder"),
    "an index of more": (index_of_more, r"lists model\.more\.weight, which pytorch_model-00001-of-00002\.bin does not"),
    "an index of nothing": (put("pytorch_model.bin.index.json", b"{}"), r"weight_map must be an object"),
    "no weights": (remove("pytorch_model*"), r"holds no weights: none of model\.safetensors"),
    "a layer missing": (
        weights(lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight")),
        r"lacks 1 tensors: language_model\.model\.layers\.1\.mlp\.up_proj\.weight: fetch the whole"),
    "the embedding missing": (
        weights(lambda tensors: tensors.pop("model.embed_tokens.weight")), r"holds no embedding of a Llama"),
    "the projector missing": (
        weights(lambda t: [t.pop(n) for n in list(t) if "mm_projector" in n]),
        r"lacks 4 tensors: multi_modal_projector.*name its projector in spec\.model\.projector"),
    "a tensor of another model": (
        weights(lambda tensors: tensors.update({"model.visual.w": torch.ones(1)})), r"model\.visual\.w is not a te"),
    "a layer too many": (settings(num_hidden_layers=1), r"holds, beyond what its config\.json tells, 9 tensors"),
    "another width": (settings(intermediate_size=128), r"mlp\.\w+_proj\.weight is \(.*but config\.json tells of \("),
    "heads that do not divide": (settings(num_attention_heads=5), r"config\.json describes no model|tells of"),
    "weights that are not finite": (weights(nan), r"language_model\.model\.norm\.weight holds values that are not fin"),
    "quantised weights": (
        weights(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn)})),
        r"lm_head\.weight is stored as F8_E4M3: only unquantised"),
    "a linear projector": (
        weights(lambda t: t.update({"model.mm_projector.weight": torch.ones(2, 2)})), r"is one linear layer"),
    "a projector said to be linear": (settings(mm_projector_type="linear"), r"is 'linear' .*: correct it if"),
    "a projector type left out": (settings(mm_projector_type=None), r"mm_projector_type is 'linear'"),
    "the 224 px tower named": (
        settings(mm_vision_tower="openai/clip-vit-large-patch14"),
        r"names openai/clip-vit-large-patch14, which sees 224 px in patches of 14, but the vision tower's weights see"),
    "the 336 px tower named": (
        settings(mm_vision_tower="openai/clip-vit-large-patch14-336"), r"which sees 336 px .* weights see 56 px"),
    "start and end tokens": (settings(mm_use_im_start_end=True), r"mm_use_im_start_end is True: only LLaVA v1\.5"),
    "LLaVA v1.6": (settings(image_aspect_ratio="anyres"), r"image_aspect_ratio is 'anyres': only LLaVA v1\.5"),
    "an unknown feature": (settings(mm_vision_select_feature="cls"), r"mm_vision_select_feature is 'cls', not one of"),
    "a layer that the tower lacks": (settings(mm_vision_select_layer=-9), r"vision_feature_layer is -9"),
    "another architecture": (
        settings(model_type="llava_mistral", architectures=["LlavaMistralForCausalLM"]),
        r"model_type is 'llava_mistral' and architectures is \['LlavaMistralForCausalLM'\]: neither"),
    "no architecture": (settings(model_type=None, architectures=None), r"model_type is None and architectures is \[\]"),
    "config.json cut off": (put("config.json", b"{"), r"config\.json cannot be read"),
    "another tower's configuration": (
        with_tower(image_size=112), r"image_size is 112, but the vision tower's weights have 56: name in spec\.model"),
    "a tower that is not CLIP": (with_tower_of_siglip, r"'siglip_vision_model', not 'clip'"),
    "pictures of another size": (with_images_of_another_size, r"crop_size is .*224.*, but the tower sees 56 px"),
    "a projector of other features": (
        with_projector(vision_feature_layer=-1), r"vision_feature_layer is -1, but the model's is -2"),
    "a projector of another width": (with_wide_projector, r"linear_1\.weight is \(48, 96\), but the model's is \("),
    "more than a projector": (
        with_pickle(lambda: {"model.embed_tokens.weight": torch.ones(2, 48)} | tiny().projector_weights()),
        r"is not a projector: it holds language_model\.model\.embed_tokens"),
    "no projector": (with_pickle(dict), r"is not a projector: it holds nothing"),
    "a list for a projector": (with_pickle(lambda: [torch.ones(1)]), r"holds a list, not tensors by name"),
    "a number for a tensor": (with_pickle(lambda: {"model.mm_projector.0.weight": 5}), r"is a int, not a tensor"),
    "a folder without projector": (with_empty_projector_folder, r"holds no projector: none of projector\.safetensors"),
    "a delta of another model": (as_delta_of_another, r"but in the base it is .*: the delta was made for another"),
    "a whole original with a base": (
        whole_original_with_base, r"llava holds a whole model, not differences .*vicuna.*: remove spec\.model\.base"),
    "a whole model with a base": (whole_with_base, r"is a whole LLaVA in hub layout.*: remove spec\.model\.base"),
    "a hub model with a tower": (hub_with_tower, r"is a whole LLaVA in hub layout.*: remove spec\.model\.visionTower"),
    "a layer missing in hub layout": (
        hub_in_pickles(lambda _, tensors: tensors.pop("language_model.model.norm.weight")),
        r"lacks 1 tensors: language_model\.model\.norm\.weight: fetch the whole"),
    "weights of a hub model that are not finite": (
        hub_in_pickles(lambda _, tensors: tensors["language_model.model.norm.weight"].fill_(torch.nan)),
        r"language_model\.model\.norm\.weight holds values that are not fin"),
    "a hub model without a tokenizer": (
        hub_in_pickles(lambda hub, _: (hub / "tokenizer.json").unlink()), r"hub/tokenizer\.json does not exist"),
    "a hub model with a projector of other features": (
        hub_in_pickles(lambda *_: None, {"vision_feature_layer": -1}),
        r"vision_feature_layer is -1, but the model's is -2"),
    "a tuned tower left out": (tuned_tower_left_out, r"unfreeze_mm_vision_tower is true, but the checkpoint does not"),
    "a Llama for a LLaVA": (language_model_as_source, r"is a Llama without vision: name it in spec\.model\.lang"),
    "a LLaVA for a Llama": (llava_as_language_model, r"is no Llama by itself: name it in spec\.model\.source"),
    "a language model without tower": (without_tower, r"languageModel needs spec\.model\.visionTower"),
    "nothing": (lambda root, parts: ModelParts(), r"names neither source nor languageModel"),
    "a projector folder alone": (projector_folder_alone, r"is a mm_projector folder .*: name in spec\.model\.base"),
    "a LoRA folder alone": (lora_alone, r"is a LoRA folder .*: name in spec\.model\.base"),
    "an adapter of another kind": (lora_folder(use_dora=True), r"use_dora is True: only plain LoRA"),
    "an adapter without rank": (lora_folder(r=None), r"r is None, not a number"),
    "an adapter without weights": (lora_folder(drop="adapter_model.bin"), r"holds neither adapter_model\.safetensors"),
    "an adapter without projector": (
        lora_folder(drop="non_lora_trainables.bin"), r"non_lora_trainables\.bin does not exist: without it the"),
    "half a pair": (lora_folder({LORA_A: torch.ones(2, 48)}), r"holds \S+lora_A\.weight without \S+lora_B\."),
    "an update of nothing": (
        lora_folder({LORA_A.replace("layers.0", "layers.7"): torch.ones(2, 48),
                     LORA_A.replace("layers.0", "layers.7").replace("_A", "_B"): torch.ones(48, 2)}),
        r"the base has no model\.layers\.7\.self_attn\.q_proj\.weight"),
    "a tensor without use": (
        lora_folder({"base_model.model.model.layers.0.x": torch.ones(2)}), r"of the adapter belongs to nothing"),
    "matrices of another rank": (lora_folder(rank=3), r"as many rows as adapter_config\.json's r, which is 2"),
    "matrices of another base": (
        lora_folder({LORA_A: torch.ones(2, 40), LORA_A.replace("_A", "_B"): torch.ones(48, 2)}),
        r"make \(48, 40\), but in the base it is \(48, 48\): the adapter was trained on another base"),
    "no tokenizer": (remove("tokenizer.model"), r"holds tokenizer\.model or tokenizer\.json"),
    "a vocabulary that is none": (put("tokenizer.model", b"\xff\xff\xff"), r"is no SentencePiece model"),
    "added tokens without ids": (
        put("added_tokens.json", b'{"<pad>": null, "<x>": 3}'), r"the id of '<pad>' is None, not a whole number"),
    "several towers": (
        settings(mm_vision_tower=["a", "b"]), r"mm_vision_tower is \['a', 'b'\], not the name of one vision tower"),
    "features that are no word": (
        settings(mm_vision_select_feature=["patch"]), r"mm_vision_select_feature is \['patch'\], not one of"),
    "added tokens with gaps": (
        put("added_tokens.json", b'{"<pad>": 9000}'), r"the ids of <pad> must follow the vocabulary's"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with which nothing is wrong."""
    root = tmp_path_factory.mktemp("whole")
    original_7b(root)
    return root / "llava"


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named_and_nothing_is_written(name: str, whole: Path, tmp_path: Path):
    edit, message = REFUSED[name]
    parts = ModelParts(source=Path(shutil.copytree(whole, tmp_path / "llava")))
    parts = edit(tmp_path, parts) or parts
    with pytest.raises(StageError, match=message) as caught:
        import_model(parts, tmp_path / "out")
    assert caught.value.reason is Reason.INVALID_MODEL
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "ran").exists(), "code of a pickle was run"


def test_the_pickles_with_code_would_run_it(tmp_path: Path):
    """Else the refusals above would prove nothing."""
    pickle.loads(pickle.dumps(Code(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()


def test_a_tower_that_is_not_there_is_asked_for(tmp_path: Path):
    parts, _ = original_13b(tmp_path)
    with pytest.raises(StageError, match=r"does not carry its vision tower: name .* in spec\.model\.visionTower"):
        import_model(ModelParts(source=parts.source), tmp_path / "out")


def test_old_pickles_without_code_are_read(tmp_path: Path):
    """The format before PyTorch 1.6, in which checkpoints of LLaMA's first days are saved."""
    file = tmp_path / "w.bin"
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, file, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(file)
    (stored,) = find_stored(file)
    assert (stored.name, stored.shape, stored.dtype) == ("a", (2, 3), torch.float32)
    assert torch.equal(stored.read(), torch.arange(6.0).reshape(2, 3))


def train_vocabulary(path: Path, **changes: Any) -> Path:
    texts = path.with_suffix(".txt")
    texts.write_text("what is the total of this receipt\nabc def ghi\n" * 50)
    given = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 300,
             "remove_extra_whitespaces": False, "hard_vocab_limit": False, "minloglevel": 2} | changes  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(input=str(texts), model_prefix=str(path.with_suffix("")), **given)
    return path


@pytest.mark.parametrize(("changes", "message"), [
    ({"model_type": "unigram"}, "is no byte-pair encoding"),
    ({"byte_fallback": False, "vocab_size": 60}, "has no byte fallback"),
    ({"normalization_rule_name": "nmt_nfkc"}, "normalises texts"),
    ({"remove_extra_whitespaces": True}, "drops spaces"),
    ({"add_dummy_prefix": False}, "puts no space before a text"),
    ({"user_defined_symbols": ["<mine>"]}, "holds symbols that its user defined"),
    ({"bos_id": -1}, "lacks <s> or </s>"),
])  # fmt: skip
def test_a_vocabulary_unlike_llama_s_is_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    path = train_vocabulary(tmp_path / "tokenizer.model", **changes)
    with pytest.raises(StageError, match=message):
        convert_vocabulary(path, ["<image>"], legacy=True)


def test_a_vocabulary_larger_than_any_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tokenizer.model"
    with path.open("wb") as stream:
        stream.truncate(MAX_VOCABULARY_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read"))
    with pytest.raises(StageError) as caught:
        convert_vocabulary(path, ["<image>"], legacy=True)
    assert caught.value.reason is Reason.INVALID_MODEL
    assert caught.value.message == (
        f"{path} has 67,108,865 bytes, more than the 67,108,864 that are read: put the model's own vocabulary there"
    )


def test_a_conversion_that_changes_ids_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the merges in another order the fast tokenizer would cut otherwise: the proof must see it."""
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    convert_vocabulary(path, ["<image>"], legacy=True)
    from llava_trainer.importing import vocabulary

    right = vocabulary._merges
    monkeypatch.setattr(vocabulary, "_merges", lambda proto: reversed(list(right(proto))))
    with pytest.raises(StageError, match=r"converted to tokenizer\.json, .* has ids"):
        convert_vocabulary(path, ["<image>"], legacy=True)


def test_settings_of_a_llama_are_those_of_its_file(tmp_path: Path):
    """A language model's own settings (a longer context, say) reach the converted one."""
    parts, _ = original_7b(tmp_path)
    settings(rope_theta=5e5, rms_norm_eps=1e-6, max_position_embeddings=1024)(tmp_path, parts)
    written = json.loads((import_model(parts, tmp_path / "out").model_dir / "config.json").read_text())
    text = written["text_config"]
    assert (text["rope_theta"], text["rms_norm_eps"], text["max_position_embeddings"]) == (5e5, 1e-6, 1024)
    assert text["hidden_size"] == llama_settings(tiny())["hidden_size"]


def test_a_fast_tokenizer_is_taken_as_it_is(tmp_path: Path):
    parts, _ = original_7b(tmp_path)
    first = import_model(parts, tmp_path / "first").model_dir
    source = tmp_path / "llava"
    (source / "tokenizer.model").unlink()
    (source / "tokenizer.json").write_bytes((first / "tokenizer.json").read_bytes())
    again = import_model(parts, tmp_path / "again").model_dir
    before, after = (json.loads((folder / "tokenizer.json").read_text()) for folder in (first, again))
    assert before["model"] == after["model"]
    (source / "tokenizer.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(StageError, match=r"tokenizer\.json cannot be used"):
        import_model(parts, tmp_path / "never")


def test_the_tokenizer_files_of_earlier_versions_are_understood(tmp_path: Path):
    """Tokens written as objects, and the pad token in special_tokens_map.json."""
    parts, _ = original_7b(tmp_path)
    source = write_tokenizer(tmp_path / "llava", pad_token=None, eos_token={"content": "</s>", "lstrip": False})
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<unk>"}}))
    written = json.loads((import_model(parts, tmp_path / "out").model_dir / "tokenizer_config.json").read_text())
    assert (written["pad_token"], written["eos_token"], written["tokenizer_class"]) == (
        "<unk>", "</s>", "PreTrainedTokenizerFast",
    )  # fmt: skip


def test_a_tokenizer_that_transformers_builds_anew_is_found_out(toy_processor: Processor, tmp_path: Path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece_model())
    written = ImportedTokenizer(backend=convert_vocabulary(path, ["<image>"], legacy=True), settings={})
    with pytest.raises(StageError, match=r"loaded by transformers, the tokenizer gives .* the ids"):
        conversion._check_loaded(toy_processor, written)
