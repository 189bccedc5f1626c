"""Every layout that is not the hub's becomes a hub checkpoint that computes what the original computes.

The original is built of Llama, CLIP and a projector by themselves (``originals``); logits are compared in fp32, token
ids come from the oracle on the sentencepiece package.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from llava_trainer.data.encode import encode
from llava_trainer.data.model_files import check_weights
from llava_trainer.data.processor import load_processor
from llava_trainer.importing import ImportedModel, ModelParts, import_model, is_hub_layout
from llava_trainer.model.loading import load_model
from tests.trainer import llava_oracle as oracle
from tests.trainer.originals import (
    Original,
    build,
    llava_settings,
    sentencepiece_model,
    vocabulary_size,
    write_language_model,
    write_settings,
    write_tokenizer,
    write_tower,
    write_weights,
)
from tests.trainer.test_template import make_sample

Made = tuple[ModelParts, Original]
PROJECTOR_WEIGHTS = "projector.safetensors"


def original_7b(root: Path) -> Made:
    """As liuhaotian/llava-v1.5-7b: pickled shards, the tower inside."""
    made = build()
    source = write_settings(root / "llava", llava_settings(made))
    write_tokenizer(source)
    # Buffers that old checkpoints carry and nothing reads.
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    write_weights(source, made.weights() | buffers, pickled=True, shards=2)
    return ModelParts(source=source), made


def original_13b(root: Path) -> Made:
    """As liuhaotian/llava-v1.5-13b: safetensors shards, the tower in a folder of its own."""
    made = build(seed=1)
    source = write_settings(root / "llava", llava_settings(made))
    write_tokenizer(source, legacy=False)
    write_weights(source, made.language_weights() | made.projector_weights(), shards=3)
    return ModelParts(source=source, vision_tower=write_tower(root / "clip", made)), made


def all_features(root: Path) -> Made:
    """Another layer of the tower, with its class token."""
    made = build(seed=2)
    settings = llava_settings(made, mm_vision_select_layer=-1, mm_vision_select_feature="cls_patch")
    source = write_tokenizer(write_settings(root / "llava", settings))
    write_weights(source, made.weights())
    return ModelParts(source=source), made


def bigger_images(root: Path) -> Made:
    """A tower for images of 84 px: 36 tokens each."""
    made = build(seed=3, image_px=84)
    source = write_tokenizer(write_settings(root / "llava", llava_settings(made)))
    write_weights(source, made.weights(), pickled=True)
    return ModelParts(source=source), made


def projector_folder(root: Path) -> Made:
    """What pre-training of the original code leaves: mm_projector.bin, for a language model and a tower."""
    made = build(seed=4)
    source = write_settings(root / "pretrained", llava_settings(made))
    torch.save(made.projector_weights(), source / "mm_projector.bin")
    base = write_language_model(root / "vicuna", made, pad_token=None)
    return ModelParts(source=source, base=base, vision_tower=write_tower(root / "clip", made)), made


def delta(root: Path) -> Made:
    """Differences to a Llama that may not be passed on; the vocabulary has grown by one row."""
    made, base = build(seed=5, rows=vocabulary_size() + 1), build(seed=6)
    original = base.language_weights()
    difference = made.weights()
    for name, tensor in original.items():
        difference[name][: tensor.shape[0]] -= tensor
    source = write_tokenizer(write_settings(root / "delta", llava_settings(made)))
    (source / "added_tokens.json").write_text(json.dumps({"<pad>": vocabulary_size()}))
    write_weights(source, difference, pickled=True, shards=2)
    return ModelParts(source=source, base=write_language_model(root / "llama", base)), made


def lora(root: Path, *, on_llava: bool = False, rs_lora: bool = False) -> Made:
    """An adapter of the original code beside what was trained whole, on Vicuna; the oracle is PEFT's own merging."""
    made, source = build(seed=7), root / "llava-lora"
    whole = build(seed=8).projector
    base = root / "base"
    if on_llava:
        write_tokenizer(write_settings(base, llava_settings(made)))
        write_weights(base, made.weights())
    else:
        write_language_model(base, made)
    tower = None if on_llava else write_tower(root / "clip", made)
    targets = ["q_proj", "v_proj", "o_proj", "down_proj"]
    config = LoraConfig(r=8, lora_alpha=16, use_rslora=rs_lora, target_modules=targets, task_type="CAUSAL_LM")
    tuned = get_peft_model(made.llama, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    tuned.save_pretrained(source)
    adapter = source / "adapter_model.safetensors"
    torch.save(load_file(adapter), source / "adapter_model.bin")
    adapter.unlink()
    write_settings(source, llava_settings(made))
    trained = {f"base_model.model.model.mm_projector.{key}": value for key, value in whole.state_dict().items()}
    torch.save(trained, source / "non_lora_trainables.bin")
    merged = tuned.merge_and_unload()
    return ModelParts(source=source, base=base, vision_tower=tower), dataclasses.replace(
        made, llama=merged.eval(), projector=whole
    )


def rank_stabilised_lora(root: Path) -> Made:
    """The same, scaled by alpha / sqrt(rank)."""
    return lora(root, rs_lora=True)


def lora_on_llava(root: Path) -> Made:
    """The same on a whole LLaVA."""
    return lora(root, on_llava=True)


def lora_on_hub(root: Path) -> Made:
    """The same on that LLaVA in hub layout."""
    parts, made = lora(root, on_llava=True)
    assert parts.base is not None
    hub = import_model(ModelParts(source=parts.base), root / "hub-base").model_dir
    return dataclasses.replace(parts, base=hub), made


def assembled(root: Path) -> Made:
    """Language model and tower; the projector is drawn as PyTorch draws linear layers."""
    made = build(seed=9)
    torch.manual_seed(42)
    first, second = nn.Linear(64, 48), nn.Linear(48, 48)
    projector = nn.Sequential(first, nn.GELU(), second)
    tower = write_tower(root / "clip", made)
    return ModelParts(language_model=write_language_model(root / "vicuna", made), vision_tower=tower), (
        dataclasses.replace(made, projector=projector)
    )


def assembled_with_pickle(root: Path) -> Made:
    """Language model, tower and an mm_projector.bin by itself."""
    parts, made = assembled(root)
    trained = build(seed=10).projector
    file = root / "mm_projector.bin"
    torch.save({f"mm_projector.{key}": value for key, value in trained.state_dict().items()}, file)
    return dataclasses.replace(parts, projector=file), dataclasses.replace(made, projector=trained)


def assembled_with_projector(root: Path) -> Made:
    """Language model, tower and the projector folder of another run."""
    parts, made = assembled(root)
    trained = build(seed=10).projector
    return dataclasses.replace(parts, projector=write_projector(root / "projector", trained)), (
        dataclasses.replace(made, projector=trained)
    )


def hub_with_projector(root: Path) -> Made:
    """A model in hub layout with another run's projector."""
    parts, made = original_7b(root)
    hub = import_model(parts, root / "hub-base").model_dir
    trained = build(seed=11).projector
    return ModelParts(source=hub, projector=write_projector(root / "projector", trained)), (
        dataclasses.replace(made, projector=trained)
    )


def hub_in_pickles(root: Path) -> Made:
    """A model in hub layout whose weights are pickled shards."""
    parts, made = original_7b(root)
    hub = import_model(parts, root / "hub-pickled").model_dir
    file = hub / "model.safetensors"
    write_weights(hub, load_file(file), pickled=True, shards=2)
    file.unlink()
    return ModelParts(source=hub), made


def write_projector(folder: Path, projector: nn.Sequential, **settings: object) -> Path:
    names = {"0": "multi_modal_projector.linear_1", "2": "multi_modal_projector.linear_2"}
    weights = {
        ".".join((names[key.split(".")[0]], key.split(".")[1])): value for key, value in projector.state_dict().items()
    }
    folder.mkdir()
    save_file(weights, folder / PROJECTOR_WEIGHTS)
    told = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"} | settings
    (folder / "config.json").write_text(json.dumps(told))
    return folder


LAYOUTS: dict[Callable[[Path], Made], tuple[str, str]] = {
    original_7b: ("original", "<unk>"), original_13b: ("original", "<unk>"), all_features: ("original", "<unk>"),
    bigger_images: ("original", "<unk>"), projector_folder: ("original", "<pad>"), delta: ("original", "<unk>"),
    lora: ("original", "<unk>"), rank_stabilised_lora: ("original", "<unk>"),
    lora_on_llava: ("original", "<unk>"), lora_on_hub: ("original", "<unk>"),
    assembled: ("assembled", "<unk>"), assembled_with_pickle: ("assembled", "<unk>"),
    assembled_with_projector: ("assembled", "<unk>"), hub_with_projector: ("hub", "<unk>"),
    hub_in_pickles: ("hub", "<unk>"),
}  # fmt: skip


def largest_difference(imported: ImportedModel, made: Original, *, legacy: bool) -> float:
    """Of the logits of a conversation with two images, and of one without, in fp32."""
    processor = load_processor(imported.model_dir, "pad")
    model = load_model(imported.model_dir, torch.float32, "cpu")
    tokenizer = oracle.SlowLlamaTokenizer(sentencepiece_model(), legacy=legacy)
    config = model.config
    cut = 1 if config.vision_feature_select_strategy == "default" else 0
    differences = []
    for image_turns in ((0, 2), ()):
        sample = make_sample("what is it?", "the total", "and the date", "9", image_turns=image_turns)
        prefix = ["<image>" if index in image_turns else "" for index in range(4)]
        spoken = [
            ("human" if turn.role == "user" else "gpt", prefix[index] + turn.text)
            for index, turn in enumerate(sample.turns)
        ]
        ids = oracle.image_token(oracle.layout(spoken), tokenizer)
        chunks = split_at_images(ids)
        ours = encode(sample, processor, 10_000).input_ids
        generator = torch.Generator().manual_seed(3)
        size = processor.image_size_px
        pixels = torch.randn(2, 3, size, size, generator=generator) if image_turns else None
        expected = made.logits(chunks, pixels, layer=config.vision_feature_layer, cut=cut)
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ours]), pixel_values=pixels).logits[0]
        assert len(expected) == len(ours)
        differences.append((found[:, : expected.shape[1]] - expected).abs().max().item())
    return max(differences)


def split_at_images(ids: list[int]) -> list[list[int]]:
    chunks: list[list[int]] = [[]]
    for token in ids:
        if token == oracle.IMAGE:
            chunks.append([])
        else:
            chunks[-1].append(token)
    return chunks


@pytest.mark.parametrize("make", LAYOUTS, ids=lambda make: make.__name__)
def test_a_converted_model_computes_what_the_original_computes(make: Callable[[Path], Made], tmp_path: Path):
    parts, made = make(tmp_path)
    assert not is_hub_layout(parts)
    counts: list[tuple[int, int]] = []
    imported = import_model(parts, tmp_path / "out", seed=42, on_tensor=lambda *count: counts.append(count))
    layout, pad = LAYOUTS[make]
    assert (imported.model_dir, imported.layout) == (tmp_path / "out", layout)
    assert largest_difference(imported, made, legacy=make is not original_13b) < 1e-5
    processor = load_processor(imported.model_dir, "pad")
    assert processor.pad_token_id == processor.tokenizer.convert_tokens_to_ids(pad)
    config = json.loads((imported.model_dir / "config.json").read_text())
    assert config["text_config"]["vocab_size"] % 64 == 0
    assert config["pad_token_id"] == processor.pad_token_id
    assert check_weights(imported.model_dir) > 0
    assert counts == [(number + 1, len(counts)) for number in range(len(counts))]


def test_a_hub_model_is_read_where_it_is(tmp_path: Path):
    parts, _ = original_7b(tmp_path)
    hub = import_model(parts, tmp_path / "hub").model_dir
    again = ModelParts(source=hub)
    assert is_hub_layout(again)
    assert import_model(again, tmp_path / "never") == ImportedModel(model_dir=hub, layout="hub")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("make", [hub_in_pickles, hub_with_projector], ids=lambda make: make.__name__)
def test_what_stands_beside_the_weights_of_a_hub_model_stays_as_it_is(make: Callable[[Path], Made], tmp_path: Path):
    """A model must not be cut into other tokens because its weights come as pickles."""
    parts, _ = make(tmp_path)
    source = parts.source
    assert source is not None
    config = json.loads((source / "config.json").read_text()) | {"vision_feature_layer": -1, "initializer_range": 0.5}
    (source / "config.json").write_text(json.dumps(config))
    if parts.projector is not None:
        (parts.projector / "config.json").unlink()
    (source / "generation_config.json").write_text('{"eos_token_id": [2, 3], "max_length": 4096}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    # By itself it would give other ids than the tokenizer.json beside it.
    write_tokenizer(tmp_path / "slow", legacy=False)
    (source / "tokenizer.model").write_bytes((tmp_path / "slow" / "tokenizer.model").read_bytes())
    settings = json.loads((source / "tokenizer_config.json").read_text()) | {"legacy": False}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "modeling_llava.py").write_text("raise SystemExit")
    imported = import_model(parts, tmp_path / "out").model_dir
    assert read_beside_weights(imported) == {
        name: content for name, content in read_beside_weights(source).items() if name != "modeling_llava.py"
    }


def read_beside_weights(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.suffix not in (".bin", ".safetensors") and not path.name.endswith(".index.json")
    }


def test_number_formats_of_a_hub_model_in_pickles_stay(tmp_path: Path):
    parts, _ = original_7b(tmp_path)
    hub = import_model(parts, tmp_path / "hub").model_dir
    weights = {
        name: tensor.to(torch.float16 if name.startswith("vision_tower") else torch.bfloat16)
        for name, tensor in load_file(hub / "model.safetensors").items()
    }
    (hub / "model.safetensors").unlink()
    write_weights(hub, weights, pickled=True)
    written = load_file(import_model(ModelParts(source=hub), tmp_path / "out").model_dir / "model.safetensors")
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in weights.items())
    assert {name: tensor.dtype for name, tensor in written.items()} == {n: t.dtype for n, t in weights.items()}


def test_a_head_that_is_the_embedding_stays_so(tmp_path: Path):
    """As PyTorch pickles it: the embedding once, for both."""
    parts, _ = hub_in_pickles(tmp_path)
    hub = parts.source
    assert hub is not None
    file = hub / "config.json"
    config = json.loads(file.read_text())
    config |= {"tie_word_embeddings": True, "text_config": config["text_config"] | {"tie_word_embeddings": True}}
    file.write_text(json.dumps(config))
    for shard in hub.glob("*.bin"):
        held = torch.load(shard, weights_only=True)
        held.pop("language_model.lm_head.weight", None)
        torch.save(held, shard)
    index = hub / "pytorch_model.bin.index.json"
    places = json.loads(index.read_text())["weight_map"]
    del places["language_model.lm_head.weight"]
    index.write_text(json.dumps({"weight_map": places}))
    imported = import_model(parts, tmp_path / "out")
    model = load_model(imported.model_dir, torch.float32, "cpu")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_hub_model_with_both_kinds_of_weights_is_read_where_it_is(tmp_path: Path):
    parts, _ = original_7b(tmp_path)
    hub = import_model(parts, tmp_path / "hub").model_dir
    (hub / "pytorch_model.bin").write_bytes(b"never read")
    assert is_hub_layout(ModelParts(source=hub))


def test_a_conversion_is_whole_or_not_there_and_is_not_repeated(tmp_path: Path):
    parts, made = original_7b(tmp_path)

    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_model(parts, tmp_path / "out", on_tensor=stop)
    assert not (tmp_path / "out").exists()
    imported = import_model(parts, tmp_path / "out")
    assert largest_difference(imported, made, legacy=True) < 1e-5
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    written = {path.name: path.read_bytes() for path in imported.model_dir.iterdir()}
    assert ".parts" not in written
    # An earlier attempt's result is used: nothing is read or written again.
    assert import_model(parts, tmp_path / "out", on_tensor=stop) == imported
    assert {path.name: path.read_bytes() for path in imported.model_dir.iterdir()} == written


def test_a_fresh_projector_follows_from_the_seed(tmp_path: Path):
    parts, _ = assembled(tmp_path)
    drawn = {
        name: load_file(import_model(parts, tmp_path / name, seed=seed).model_dir / "model.safetensors")
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    }
    name = "multi_modal_projector.linear_1.weight"
    assert torch.equal(drawn["first"][name], drawn["again"][name])
    assert not torch.equal(drawn["first"][name], drawn["other"][name])
    state = torch.get_rng_state()
    import_model(parts, tmp_path / "more", seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_new_rows_of_the_vocabulary_are_the_mean_of_the_others(tmp_path: Path):
    parts, made = original_7b(tmp_path)
    weights = load_file(import_model(parts, tmp_path / "out").model_dir / "model.safetensors")
    for ours, theirs in (
        ("language_model.model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ):
        original = made.language_weights()[theirs]
        assert torch.equal(weights[ours][: len(original)], original)
        assert len(weights[ours]) == 704
        torch.testing.assert_close(weights[ours][len(original) :], original.mean(0).expand(704 - len(original), -1))
