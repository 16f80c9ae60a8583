"""Words that are hidden, and what names them again: the masked language model of BERT, over packed texts.

Letters: T tokens of all texts, M hidden ones, D width, W words of the vocabulary.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from turborec.nn.keyed import bits
from turborec.nn.linear import Context, Linear
from turborec.nn.longformer import Tokens
from turborec.recipe import Config

REPLACED, KEPT = 0.8, 0.1
"""Of the hidden tokens: the share that becomes the mask, and the share that stays; the others become any word."""


class MaskedWords(Config):
    """Words that are hidden in training, for the encoder to name them."""

    weight: float = Field(0.1, gt=0.0, description="what the loss of naming them counts, of histories and of what follows each")
    share: float = Field(0.15, gt=0.0, lt=1.0, description="of the tokens")


@dataclass(frozen=True)
class Hidden:
    """Texts some of whose tokens have to be named."""

    tokens: Tokens  # as they are shown
    where: Tensor  # int64 [M]: which of the tokens
    wanted: Tensor  # int64 [M]: what they were


def hide(tokens: Tokens, keys: Tensor, site: int, share: float, mask: int, vocabulary: int) -> Hidden:
    """Hide a share of the tokens (Devlin et al. 2019, arXiv 1810.04805, section 3.1), each by its text's key [B] and its place.

    The first token of a text stands for all of it and is never hidden. Tokens are hidden one by one, as the whole-word masking
    of RecFormer's released code does with RoBERTa's tokens, none of which it knows for the rest of a word.
    """
    drawn = bits(keys[tokens.rows], site, tokens.places[:, None], 3)[:, 0]  # [T, 3]
    chosen, how, which = ((drawn >> 11) & (2**53 - 1)).double().mul(2.0**-53).unbind(1)
    hidden = (chosen < share) & (tokens.places > 0)
    any_word = (which * vocabulary).long()
    shown = torch.where(how < REPLACED, mask, torch.where(how < 1 - KEPT, any_word, tokens.ids))
    where = hidden.nonzero().squeeze(1)
    return Hidden(replace(tokens, ids=torch.where(hidden, shown, tokens.ids)), where, tokens.ids[where])


class WordHead(nn.Module):
    """What is compared with the words' vectors: a linear map of a state, GELU, a norm (Liu et al. 2019, arXiv 1907.11692)."""

    def __init__(self, width: int, vocabulary: int, norm_eps: float) -> None:
        super().__init__()
        self.dense, self.norm = Linear(width, width), nn.LayerNorm(width, eps=norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, states: Tensor, context: Context) -> Tensor:
        """[M, D] -> [M, D], whose products with the words' vectors, and `bias` [W], are logits."""
        projected: Tensor = self.norm(F.gelu(self.dense(states, context)))
        return projected
