"""One small network and its masks in every form in which they are found outside."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune

Masks = dict[str, Tensor]


def make_net() -> nn.Module:
    """A convolution, a normalisation and a linear layer, without a zero in the weights."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(2, 4, 3))
    net.add_module("bn", nn.BatchNorm2d(4))
    net.add_module("fc", nn.Linear(9, 5))
    return net.eval()


def make_masks() -> Masks:
    """Masks of the network; in none of their rows is everything pruned."""
    masks = {"conv.weight": torch.rand(4, 2, 3, 3) < 0.5, "fc.weight": torch.rand(5, 9) < 0.3}
    for mask in masks.values():
        mask.flatten(1)[:, 0] = True
    return masks


def zeroed(net: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The state dict with the masks multiplied in; negative weights leave -0.0."""
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return {name: value * masks[name] if name in masks else value for name, value in state.items()}


def pruned_state(net: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The state dict of a network with the hooks of torch.nn.utils.prune."""
    for name, mask in masks.items():
        prune.custom_from_mask(net.get_submodule(name.removesuffix(".weight")), "weight", mask)
    prune.custom_from_mask(net.get_submodule("fc"), "bias", torch.tensor([1, 1, 0, 1, 1]))
    return dict(net.state_dict())


def floats(masks: Masks, pattern: str = "{}") -> dict[str, Tensor]:
    """Masks as floats, their keys made by a pattern from the name of the module."""
    return {pattern.format(name.removesuffix(".weight")): mask.float() for name, mask in masks.items()}


def save(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


def prune_hooks(path: Path, net: nn.Module, masks: Masks) -> Path:
    return save(path / "hooks.pt", pruned_state(net, masks))


def prune_removed(path: Path, net: nn.Module, masks: Masks) -> Path:
    return save(path / "removed.pth", zeroed(net, masks))


def open_lth_file(path: Path, _: nn.Module, masks: Masks) -> Path:
    torch.save({name: mask.int() for name, mask in masks.items()}, path / "mask.pth")
    return path


def open_lth_wrapper(path: Path, net: nn.Module, masks: Masks) -> Path:
    state = {f"model.{name}": value for name, value in net.state_dict().items()}
    buffers = {f"mask_{name.replace('.', '___')}": mask.float() for name, mask in masks.items()}
    return save(path / "model.pth", state | buffers)


def structure_lth(path: Path, net: nn.Module, masks: Masks) -> Path:
    rewind = {name: value.clone() for name, value in net.state_dict().items()}
    state = pruned_state(net, masks) | {"normalize.mean": torch.rand(3), "normalize.std": torch.rand(3)}
    optimizer = {"state": {0: {"momentum_buffer": torch.rand(4)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content = {"result": {"test_ta": [91.5]}, "epoch": 3, "state_dict": state, "optimizer": optimizer}
    return save(path / "2checkpoint.pth.tar", content | {"init_weight": rewind, "best_sa": np.float64(0.5)})


def sparse_learning(path: Path, net: nn.Module, masks: Masks) -> Path:
    state = {f"module.{name}": value for name, value in zeroed(net, masks).items()}
    return save(path / "rigl.tar", {"state_dict": state, "epoch": 1})


def rigl_torch(path: Path, _: nn.Module, masks: Masks) -> Path:
    return save(path / "rigl.pt", {"dense_allocation": 0.2, "backward_masks": [masks["conv.weight"], None]})


def nni(path: Path, _: nn.Module, masks: Masks) -> Path:
    content: dict[str, dict[str, Tensor | None]] = {
        name.removesuffix(".weight"): {"weight": mask.float(), "bias": None, "_input_": torch.ones(9)}
        for name, mask in masks.items()
    }
    return save(path / "nni.pt", content)


def torch_ao(path: Path, _: nn.Module, masks: Masks) -> Path:
    state = {name: {"mask": mask.float()} for name, mask in masks.items()}
    groups = [{"tensor_fqn": name, "sparsity_level": 0.5} for name in masks]
    return save(path / "ao.pt", {"sparsifier": {"state": state, "groups": groups}})


def torch_ao_defaultdict(path: Path, _: nn.Module, masks: Masks) -> Path:
    state: dict[str, dict[str, Tensor]] = defaultdict(dict)
    state.update({name: {"mask": mask.float()} for name, mask in masks.items()})
    return save(path / "ao_state.pt", {"state": state, "groups": []})


def hugging_face(path: Path, net: nn.Module, masks: Masks) -> Path:
    save_file(zeroed(net, masks), path / "model.safetensors")
    return path


def sharded(path: Path, net: nn.Module, masks: Masks) -> Path:
    state = zeroed(net, masks)
    places = {name: f"model-0000{1 + (name > 'd')}-of-00002.safetensors" for name in state}
    for file in set(places.values()):
        save_file({name: value for name, value in state.items() if places[name] == file}, path / file)
    index = '{"metadata": {}, "weight_map": {' + ", ".join(f'"{k}": "{v}"' for k, v in places.items()) + "}}"
    (path / "model.safetensors.index.json").write_text(index)
    return path


def compressed_tensors(name: str) -> Callable[[Path, nn.Module, Masks], Path]:
    def write(path: Path, net: nn.Module, masks: Masks) -> Path:
        content = {"bn.weight": torch.ones(4)}
        for key, mask in masks.items():
            prefix = name.format(key.removesuffix(".weight"))
            packed = np.packbits(mask.numpy(), axis=-1, bitorder="little")
            content |= {
                f"{prefix}.shape": torch.tensor(mask.shape),
                f"{prefix}.compressed": net.get_parameter(key).detach()[mask],
                f"{prefix}.bitmask": torch.from_numpy(packed.reshape(-1, packed.shape[-1])),
                f"{prefix}.row_offsets": torch.zeros(4, dtype=torch.int64),
            }
        save_file(content, path / "model.safetensors")
        return path / "model.safetensors"

    return write


def buffers(pattern: str, kind: torch.dtype, *others: str) -> Callable[[Path, nn.Module, Masks], Path]:
    """A state dict with the weights and, beside them, masks under keys made by a pattern."""

    def write(path: Path, net: nn.Module, masks: Masks) -> Path:
        state = dict(net.state_dict())
        for key, mask in masks.items():
            module = key.removesuffix(".weight")
            state[pattern.format(module)] = mask.to(kind)
            state |= {other.format(module): mask * 0.5 for other in others}
        return save(path / "state.pt", state)

    return write


def lightning(path: Path, net: nn.Module, masks: Masks) -> Path:
    state = {f"net.{name}": value for name, value in pruned_state(net, masks).items()}
    return save(path / "last.ckpt", {"state_dict": state, "pytorch-lightning_version": "2.5", "hyper_parameters": {}})


def sparse_tensors(path: Path, net: nn.Module, masks: Masks) -> Path:
    values = {name: net.get_parameter(name).detach() * mask for name, mask in masks.items()}
    fc = values["fc.weight"]
    fc[0, 0] = 0.0
    coo = torch.sparse_coo_tensor(
        masks["fc.weight"].nonzero().T, fc[masks["fc.weight"]], fc.shape, check_invariants=True
    )
    return save(path / "sparse.pt", {"fc.weight": coo, "conv.weight": values["conv.weight"].to_sparse()})


def npz(path: Path, _: nn.Module, masks: Masks) -> Path:
    np.savez(path / "masks.npz", **{name: mask.numpy().astype(np.uint8) for name, mask in masks.items()})  # type: ignore[arg-type]  # its stubs want allow_pickle last
    return path / "masks.npz"


def old_format(path: Path, _: nn.Module, masks: Masks) -> Path:
    torch.save(dict(masks), path / "old.pt", _use_new_zipfile_serialization=False)
    return path / "old.pt"


SOURCES: dict[str, Callable[[Path, nn.Module, Masks], Path]] = {
    "1 torch.nn.utils.prune": prune_hooks,
    "2 prune.remove": prune_removed,
    "3 torch.ao.pruning": torch_ao,
    "4 open_lth file": open_lth_file,
    "4 open_lth wrapper": open_lth_wrapper,
    "5 Structure-LTH": structure_lth,
    "6 sparse_learning": sparse_learning,
    "7 rigl-torch": rigl_torch,
    "8 NNI": nni,
    "9 Wanda, SparseGPT": hugging_face,
    "10 llm-compressor": buffers("{}.mask", torch.bool),
    "10 old SparseML": buffers("{}.weight.sparsity_mask", torch.bool),
    "11 compressed-tensors 2025": compressed_tensors("{}"),
    "11 compressed-tensors 2024": compressed_tensors("{}.weight"),
    "13 apex": buffers("{}.__weight_mma_mask", torch.bool, "{}.__weight_mma_pruned_p"),
    "13 ModelOpt": buffers("{}._weight_mask", torch.bool),
    "14 NNCF": buffers("__nncf_hooks.post_hooks.{}:weight__0.0.binary_mask", torch.bool),
    "15 Lightning": lightning,
    "17 sparse tensors": sparse_tensors,
    "18 sharded": sharded,
    "NumPy archive": npz,
    "torch, old format": old_format,
}
"""Number of the row and name -> writes the masks and returns the path to load."""
