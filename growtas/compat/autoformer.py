"""AutoFormer's supernet class (``model/supernet_transformer.py``) on growtas' kernels.

The class owns parameters under AutoFormer's names, shapes, row order and registration order, so
whatever a script does with parameters, gradients, state_dict or optimizer state means what it
meant. Each forward hands views of them to a :class:`growtas.Supernet` that has none of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from growtas import kernels
from growtas.base.checks import mapping, positive_int
from growtas.compat.autoformer_layout import HEAD_DIM, from_autoformer
from growtas.compat.complexity import autoformer_complexity
from growtas.space import SearchSpace, Subnet
from growtas.supernet.layers import drawn
from growtas.supernet.vit.config import INIT_STD
from growtas.supernet.vit.geometry import num_params
from growtas.supernet.vit.model import Supernet

_CONFIG = ("layer_num", "embed_dim", "mlp_ratio", "num_heads")


class Vision_TransformerSuper(nn.Module):
    """Drop-in for AutoFormer's class of this name (Chen et al., ICCV 2021): same constructor,
    methods and state_dict. ``set_sample_config`` chooses the subnet that ``forward`` runs.

    Unlike the original it may be copied and pickled at any time, takes weights that were changed
    after ``set_sample_config``, and says what is wrong with a config. It is to be wrapped in
    DistributedDataParallel, not in ``nn.DataParallel``.

    Args:
        img_size: side in pixels, or (height, width).
        patch_size: side of a square patch in pixels.
        in_chans, num_classes: image channels and outputs.
        embed_dim, depth, num_heads, mlp_ratio: sizes of the supernet; ``embed_dim`` must be
            ``64 * num_heads``, as in AutoFormer's own supernets.
        qkv_bias: whether q, k and v have a bias (every AutoFormer script says True).
        drop_path_rate: stochastic depth rate of the last block; block i of L has
            ``drop_path_rate * i / (L - 1)``.
        gp: average the patch tokens instead of taking the class token.
        relative_position, max_relative_position: 2-D relative position on keys and values.
        abs_pos: add a position embedding.
        change_qkv: must be True; the original cannot run heads of 64 without it.
        qk_scale, drop_rate, attn_drop_rate, pre_norm, scale: must keep their defaults.

    Raises:
        NotImplementedError: an option that has to keep its value has another.
        ValueError, TypeError: a size or rate out of range.
    """

    _bias_reading = "autoformer"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        pre_norm: bool = True,
        scale: bool = False,
        gp: bool = False,
        relative_position: bool = False,
        change_qkv: bool = False,
        abs_pos: bool = True,
        max_relative_position: int = 14,
    ) -> None:
        super().__init__()
        allow_only(
            ("qk_scale", qk_scale, None),
            ("drop_rate", drop_rate, 0.0),
            ("attn_drop_rate", attn_drop_rate, 0.0),
            ("pre_norm", pre_norm, True),
            ("scale", scale, False),
            ("change_qkv", change_qkv, True),
        )
        space = SearchSpace((embed_dim,), (depth,), (num_heads,), (mlp_ratio,), HEAD_DIM)
        if embed_dim != HEAD_DIM * num_heads:
            raise ValueError(
                f"embed_dim is {embed_dim}; {num_heads} heads of {HEAD_DIM} need "
                f"{HEAD_DIM * num_heads}"
            )
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = Supernet(
                space,
                img_size,
                patch_size,
                num_classes,
                in_chans,
                pool="mean" if gp else "cls",
                absolute_position=abs_pos,
                relative_position=relative_position,
                max_relative_position=max_relative_position,
                drop_path=drop_path_rate,
                qkv_bias=self._bias_reading,
            )
        network.head = _Features()  # type: ignore[assignment]
        if not qkv_bias:
            for block in network.blocks:
                block.attn.qkv.bias = None  # type: ignore[union-attr]
        # in a tuple, so that it is no submodule: its parameters are placeholders without memory
        self._network = (network,)
        self._qkv_bias = qkv_bias

        self.super_embed_dim = embed_dim
        self.super_mlp_ratio = mlp_ratio
        self.super_layer_num = depth
        self.super_num_heads = num_heads
        self.super_dropout = drop_rate
        self.super_attn_dropout = attn_drop_rate
        self.num_classes = num_classes
        self.pre_norm = pre_norm
        self.scale = scale
        self.gp = gp
        self.abs_pos = abs_pos

        self._subnet: Subnet | None = None
        self.sample_embed_dim: list[int] | None = None
        self.sample_mlp_ratio: list[float] | None = None
        self.sample_layer_num: int | None = None
        self.sample_num_heads: list[int] | None = None
        self.sample_dropout: float | None = None
        self.sample_output_dim: list[int] | None = None

        self.patch_embed_super = _PatchEmbedding(
            network.image_size, patch_size, in_chans, embed_dim
        )
        hidden, reach = space.supernet.hidden_dim, max_relative_position
        self.blocks = nn.ModuleList(
            _Block(embed_dim, hidden, qkv_bias, reach if relative_position else None)
            for _ in range(depth)
        )
        if abs_pos:
            tokens = self.patch_embed_super.num_patches + 1
            self.pos_embed = drawn((1, tokens, embed_dim), INIT_STD)
        self.cls_token = drawn((1, 1, embed_dim), INIT_STD)
        self.norm = _LayerNorm(embed_dim)
        self.head = _Linear(embed_dim, num_classes)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """AutoFormer's set. timm matches whole names, so its ``rel_pos_embed`` exempts nothing and
        the tables are decayed, as in AutoFormer's own runs."""
        return {"pos_embed", "cls_token", "rel_pos_embed"}

    def get_classifier(self) -> nn.Linear:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str = "") -> None:
        """Put a new, freshly initialised classifier in place; ``global_pool`` must stay empty.

        Raises:
            ValueError: no class, or a pooling is asked for (``gp`` of the constructor chooses it).
        """
        positive_int("num_classes", num_classes)
        if global_pool:
            raise ValueError(f"global_pool is {global_pool!r}; pooling is chosen by gp when built")
        weight = self.head.weight
        self.head = _Linear(
            self.super_embed_dim, num_classes, device=weight.device, dtype=weight.dtype
        )
        self._init_weights(self.head)
        self.num_classes = num_classes

    def set_sample_config(self, config: Mapping[str, Any]) -> None:
        """Choose the subnet. On an error the one before stays.

        Args:
            config: ``layer_num`` L, and lists of L entries ``embed_dim`` (all equal),
                ``mlp_ratio`` and ``num_heads``. Other keys are ignored (PreNAS's candidates carry
                their score).

        Raises:
            TypeError: ``config`` is not a mapping or a value not a number.
            ValueError: a key is missing, lists do not fit each other, or a value exceeds the
                supernet.
        """
        fields = mapping("config", config, required=_CONFIG)
        subnet = Subnet.from_dict({name: fields[name] for name in _CONFIG})
        self._network[0].space.supernet.validate(subnet)
        self._subnet = subnet
        self.sample_embed_dim = [subnet.embed_dim] * subnet.depth
        self.sample_mlp_ratio = list(subnet.mlp_ratio)
        self.sample_layer_num = subnet.depth
        self.sample_num_heads = list(subnet.num_heads)
        self.sample_dropout = 0.0
        self.sample_output_dim = self.sample_embed_dim

    def _current(self) -> Subnet:
        if self._subnet is None:
            raise RuntimeError("no subnet is chosen: call set_sample_config(config) first")
        return self._subnet

    def get_sampled_params_numel(self, config: Mapping[str, Any]) -> int:
        """Choose a subnet, and return its number of parameters as AutoFormer counts them: exact,
        but with the position embedding even where ``abs_pos`` is off. Errors as
        :meth:`set_sample_config`."""
        self.set_sample_config(config)
        subnet = self._current()
        network = self._network[0]
        sizes = {**network.config, "num_classes": self.num_classes, "absolute_position": True}
        count = num_params(network.space, subnet, **sizes)
        return count if self._qkv_bias else count - 3 * HEAD_DIM * sum(subnet.num_heads)

    def get_complexity(self, sequence_length: int) -> float:
        """AutoFormer's count of multiply-adds for the chosen subnet and this many patches, known to
        be off: :func:`growtas.cost.autoformer_complexity` says how.

        Raises:
            RuntimeError: no subnet is chosen.
        """
        network, subnet = self._network[0], self._current()
        sizes = {**network.config, "num_classes": self.num_classes}
        return autoformer_complexity(
            network.space, subnet, sequence_length=sequence_length, **sizes
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """Pooled features ``[B, E]`` of images ``[B, in_chans, height, width]``; E is the sampled
        embedding dim.

        Raises:
            RuntimeError: no subnet is chosen.
            ValueError: images of another shape.
        """
        subnet, network = self._current(), self._network[0]
        if network.training != self.training:
            network.train(self.training)
        state = from_autoformer(
            {name: p for name, p in self.named_parameters() if not name.startswith("head.")},
            num_heads=self.super_num_heads,
            head_dim=HEAD_DIM,
            qkv_bias=self._bias_reading,
        )
        return functional_call(network, state, (x, subnet))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[B, num_classes]`` of the chosen subnet; errors as :meth:`forward_features`."""
        return kernels.linear(self.forward_features(x), self.head.weight, self.head.bias)


class _Features(nn.Module):
    """Stands where the network has its classifier and lets the pooled features through."""

    def forward(self, x: Tensor, *, gradients: None = None) -> Tensor:
        return x


def allow_only(*options: tuple[str, Any, Any]) -> None:
    """NotImplementedError for the first (name, value, only value that works) with another value."""
    for name, value, only in options:
        if value != only:
            raise NotImplementedError(f"{name}={value!r} is not implemented; use {name}={only}")


# What follows only holds parameters: names, shapes and order are those of AutoFormer's modules.


class _Holder(nn.Module):
    """Never called, so a hook on it would never run."""

    def _refuse_hook(self, *_arguments: Any, **_options: Any) -> Any:
        raise NotImplementedError(
            "modules inside this model only hold parameters and are never called, so a hook on one "
            "would never run; hook the model itself, or blocks of growtas.load_autoformer's model"
        )

    register_forward_hook = _refuse_hook
    register_forward_pre_hook = _refuse_hook
    register_full_backward_hook = _refuse_hook
    register_full_backward_pre_hook = _refuse_hook
    register_backward_hook = _refuse_hook


class _Linear(_Holder, nn.Linear):
    pass


class _LayerNorm(_Holder, nn.LayerNorm):
    pass


class _Conv2d(_Holder, nn.Conv2d):
    pass


class _PatchEmbedding(_Holder):
    def __init__(
        self, img_size: tuple[int, int], patch_size: int, in_chans: int, width: int
    ) -> None:
        super().__init__()
        self.img_size = img_size
        self.patch_size = (patch_size, patch_size)
        self.num_patches = (img_size[0] // patch_size) * (img_size[1] // patch_size)
        self.proj = _Conv2d(in_chans, width, patch_size, patch_size)


class _RelativePosition(_Holder):
    def __init__(self, reach: int) -> None:
        super().__init__()
        for name in ("embeddings_table_v", "embeddings_table_h"):
            self.register_parameter(name, drawn((2 * reach + 2, HEAD_DIM), INIT_STD))


class _Attention(_Holder):
    def __init__(self, width: int, qkv_bias: bool, reach: int | None) -> None:
        super().__init__()
        self.qkv = _Linear(width, 3 * width, bias=qkv_bias)
        if reach is not None:
            self.rel_pos_embed_k = _RelativePosition(reach)
            self.rel_pos_embed_v = _RelativePosition(reach)
        self.proj = _Linear(width, width)


class _Block(_Holder):
    def __init__(self, width: int, hidden: int, qkv_bias: bool, reach: int | None) -> None:
        super().__init__()
        self.attn = _Attention(width, qkv_bias, reach)
        self.attn_layer_norm = _LayerNorm(width)
        self.ffn_layer_norm = _LayerNorm(width)
        self.fc1 = _Linear(width, hidden)
        self.fc2 = _Linear(hidden, width)
