"""What a command starts: training, merging, an evaluation; and on how many GPUs."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from llava_trainer.translate.errors import OptionMissingError, TranslateError
from llava_trainer.translate.shell import Command, unresolved

ReadFile = Callable[[str], str | None]
"""Text of a file that the command names, None where it cannot be read."""

Kind = Literal["train", "merge", "evaluate"]

_SCRIPTS: dict[str, Kind] = {
    "train": "train", "train_mem": "train", "train_xformers": "train", "train_flash_attn": "train",
    "merge_lora_weights": "merge", "run_llava": "evaluate",
}  # fmt: skip
_LAUNCHERS = frozenset({"deepspeed", "ds", "torchrun", "python", "python3", "accelerate", "srun", "bash", "sh"})
_SWITCHES = frozenset({
    "--no_local_rank", "--no_python", "--no_ssh", "--no_ssh_check", "--force_multi", "--elastic_training",
    "--bind_cores_to_rank", "--standalone", "--multi_gpu", "--use_deepspeed", "--use_env", "--run_path", "--cpu", "-u",
    "-O", "-B",
})  # fmt: skip
"""Options of launchers that take no value."""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """Pods, and GPUs of each."""

    replicas: int
    per_replica: int
    said_by: str
    """The words that say so."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A script of LLaVA's and what it is given."""

    kind: Kind
    launcher: str
    script: str
    options: Mapping[str, str]
    """Of the launcher."""
    arguments: tuple[str, ...]
    """Of the script."""
    environment: Mapping[str, str]
    line: int


def find_launches(commands: Sequence[Command]) -> tuple[Launch, ...]:
    """Commands that start one of LLaVA's scripts.

    Raises:
        TranslateError: a training script is started by something that is not known.
    """
    return tuple(launch for command in commands if (launch := _read_launch(command)))


def _read_launch(command: Command) -> Launch | None:
    script = next((index for index, word in enumerate(command.words) if _kind_of(word)), None)
    if script is None:
        return None
    head, kind = command.words[:script], _kind_of(command.words[script])
    launcher = PurePosixPath(head[0]).name if head else "python"
    launcher = "python" if re.fullmatch(r"python[\d.]*", launcher) else launcher
    if kind is None or launcher in {"cat", "echo", "vim", "nano", "cp", "mv", "ls", "sed", "chmod", "git", "wget"}:
        return None
    if launcher not in _LAUNCHERS and not any(word.startswith("--") for word in command.words[script:]):
        return None
    if launcher not in _LAUNCHERS:
        raise TranslateError(
            f"line {command.line}: {launcher} starts {command.words[script]}, and is not a launcher that is known: use "
            "deepspeed, torchrun, accelerate launch or python"
        )
    return Launch(
        kind=kind,
        launcher=_launcher_module(head) or launcher,
        script=command.words[script],
        options=_read_options(head[1:]),
        arguments=command.words[script + 1 :],
        environment=command.environment,
        line=command.line,
    )


def _kind_of(word: str) -> Kind | None:
    """By a path that ends in .py, or a module's dotted name."""
    if not re.fullmatch(r"[\w./$~{}-]*?(\w+)\.py|(?:\w+\.)+\w+", word):
        return None
    stem = word.removesuffix(".py").replace(".", "/").rsplit("/", 1)[-1]
    if stem == "train" and "llava" not in word and not word.endswith(".py"):
        return None
    return _SCRIPTS.get(stem)


def _launcher_module(head: Sequence[str]) -> str | None:
    """``python -m torch.distributed.run`` and its like."""
    for word in head:
        if word in {"torch.distributed.run", "torch.distributed.launch"}:
            return "torchrun"
        if word in {"deepspeed.launcher.runner", "accelerate.commands.launch"}:
            return word.split(".")[0]
        if word in {"deepspeed", "torchrun", "accelerate"}:
            return word
    return None


def _read_options(words: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    position = 0
    while position < len(words):
        name, equals, value = words[position].partition("=")
        position += 1
        if not name.startswith("-"):
            continue
        if not equals and name not in _SWITCHES and position < len(words) and not words[position].startswith("-"):
            value = words[position]
            position += 1
        options[name.lstrip("-").replace("-", "_")] = value
    return options


def count_gpus(launch: Launch, read_file: ReadFile, gpus: int | None, nodes: int | None) -> Gpus:
    """Pods and GPUs of each.

    Args:
        launch: how training is started.
        read_file: reads the hostfile.
        gpus: GPUs a pod, if the person says so.
        nodes: pods, if the person says so.

    Raises:
        OptionMissingError: neither the person nor the command says how many; names the option.
        TranslateError: pods with different numbers of GPUs, or a value that is no number.
    """
    if gpus is not None:
        said = _said_by_command(launch, read_file) if nodes is None else None
        return Gpus(replicas=nodes or (said.replicas if said else 1), per_replica=gpus, said_by="--gpus")
    said = _said_by_command(launch, read_file)
    if said is None:
        raise OptionMissingError(
            f"line {launch.line}: the command does not say on how many GPUs it trains ({launch.launcher} takes all "
            "that the machine has): say it with --gpus N, the GPUs of each pod, and --nodes N for more than one pod"
        )
    return said if nodes is None else Gpus(replicas=nodes, per_replica=said.per_replica, said_by=said.said_by)


def _said_by_command(launch: Launch, read_file: ReadFile) -> Gpus | None:
    if launch.launcher in {"deepspeed", "ds"}:
        return _deepspeed(launch, read_file)
    if launch.launcher == "torchrun":
        return _by_number(launch, ("nnodes",), ("nproc_per_node",))
    if launch.launcher == "accelerate":
        nodes = _number(launch, "num_machines") or 1
        processes = _number(launch, "num_processes")
        return Gpus(replicas=nodes, per_replica=processes // nodes, said_by="--num_processes") if processes else None
    return _visible_devices(launch)


def _deepspeed(launch: Launch, read_file: ReadFile) -> Gpus | None:
    hosts = _hosts(launch, read_file)
    include = launch.options.get("include", launch.options.get("i", ""))
    if include and not unresolved(include):
        return _included(launch, include, hosts)
    if excluded := launch.options.get("exclude", launch.options.get("e", "")):
        raise OptionMissingError(
            f"line {launch.line}: --exclude {excluded} does not say how many GPUs are left: say it with --gpus N"
        )
    said = _by_number(launch, ("num_nodes",), ("num_gpus",))
    if said or not hosts:
        return said or _visible_devices(launch)
    nodes = _number(launch, "num_nodes") or len(hosts)
    return _alike(launch, list(hosts.values())[:nodes], "--hostfile")


def _included(launch: Launch, include: str, hosts: Mapping[str, int]) -> Gpus | None:
    """``host:0,1@other:0,1``; a host without numbers has all of its GPUs."""
    counts = []
    for part in include.split("@"):
        host, colon, slots = part.partition(":")
        if colon:
            counts.append(len([slot for slot in slots.split(",") if slot]))
        elif host in hosts:
            counts.append(hosts[host])
        else:
            raise OptionMissingError(
                f"line {launch.line}: --include {include} does not say how many GPUs {host} has: say it with --gpus N"
            )
    return _alike(launch, counts, "--include")


def _hosts(launch: Launch, read_file: ReadFile) -> dict[str, int]:
    """GPUs of every host in the hostfile."""
    name = launch.options.get("hostfile", launch.options.get("H", ""))
    needed = name and not any(option in launch.options for option in ("include", "i", "num_gpus"))
    if not needed:
        return {}
    text = None if unresolved(name) else read_file(name)
    if text is None:
        raise OptionMissingError(
            f"line {launch.line}: --hostfile {name} cannot be read here: say with --nodes N and --gpus N how many pods "
            "train, and with how many GPUs each"
        )
    return {match[1]: int(match[2]) for match in re.finditer(r"^\s*([^#\s]+)\s+slots\s*=\s*(\d+)", text, re.MULTILINE)}


def _alike(launch: Launch, counts: Sequence[int], said_by: str) -> Gpus | None:
    if not counts:
        return None
    if len(set(counts)) > 1:
        raise TranslateError(
            f"line {launch.line}: {said_by} names hosts with {', '.join(map(str, counts))} GPUs, but pods are all "
            "alike: say with --nodes N and --gpus N how many there should be"
        )
    return Gpus(replicas=len(counts), per_replica=counts[0], said_by=said_by)


def _by_number(launch: Launch, node_options: Sequence[str], gpu_options: Sequence[str]) -> Gpus | None:
    per_replica = next((n for option in gpu_options if (n := _number(launch, option)) is not None), None)
    if per_replica is None:
        return None
    nodes = next((n for option in node_options if (n := _number(launch, option))), 1)
    return Gpus(replicas=nodes, per_replica=per_replica, said_by=f"--{gpu_options[0]}")


def _number(launch: Launch, option: str) -> int | None:
    """Value of a launcher's option; None where it is left out, or is something like ``auto``."""
    value = launch.options.get(option, "")
    # torchrun's --nnodes takes 1:4 as well: the most.
    value = value.rpartition(":")[2]
    if names := unresolved(value):
        raise OptionMissingError(
            f"line {launch.line}: --{option} {value}: the text gives {names[0]} no value: say it with --set "
            f"{names[0]}=VALUE"
        )
    return int(value) if value.isdecimal() else None


def _visible_devices(launch: Launch) -> Gpus | None:
    devices = [device for device in launch.environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()]
    if not devices or unresolved(",".join(devices)):
        return None
    return Gpus(replicas=1, per_replica=len(devices), said_by="CUDA_VISIBLE_DEVICES")
