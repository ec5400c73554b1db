"""PreNAS's supernet class (``model/supernet_transformer.py``) on growtas' kernels."""

from __future__ import annotations

from typing import Any

from growtas.compat import autoformer


class Vision_TransformerSuper(autoformer.Vision_TransformerSuper):
    """Drop-in for PreNAS's class of this name (Wang et al., ICML 2023): AutoFormer's with the qkv
    bias read interleaved, like the weight's rows, so that an entry keeps its role in every subnet.

    Args:
        arguments, options: as for :class:`growtas.compat.autoformer.Vision_TransformerSuper`.
        choices: kept as an attribute.
        switch_ln, scale_attn, scale_mlp, scale_embed: must be False, as in all published scripts.

    Raises:
        NotImplementedError: an option that has to keep its value has another.
        ValueError, TypeError: a size or rate out of range.
    """

    _bias_reading = "blocks"

    def __init__(
        self,
        *arguments: Any,
        choices: dict[str, Any] | None = None,
        switch_ln: bool = False,
        scale_attn: bool = False,
        scale_mlp: bool = False,
        scale_embed: bool = False,
        **options: Any,
    ) -> None:
        autoformer.allow_only(
            ("switch_ln", switch_ln, False),
            ("scale_attn", scale_attn, False),
            ("scale_mlp", scale_mlp, False),
            ("scale_embed", scale_embed, False),
        )
        super().__init__(*arguments, **options)
        self.choices = choices
        self.scale_embed = scale_embed
