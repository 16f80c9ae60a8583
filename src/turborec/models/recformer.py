"""RecFormer: a history is the text of its items, newest first, and what fits it is the item whose own text lies nearest.

Letters: B rows, L positions, D width, V items, N texts, T tokens of all of them, K items of a history.
"""

import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model, Term, rows_of
from turborec.data.batch import DataSpec, ItemTokens, SequenceBatch, TextBatch
from turborec.data.windows import filled
from turborec.errors import UserError
from turborec.features.cache import Cache, open_cache
from turborec.features.pretrained import begin_with
from turborec.features.tokens import Texts, lacking
from turborec.files import from_anywhere
from turborec.losses import CatalogueLoss, CrossEntropy, Focal
from turborec.models._gate import Gate
from turborec.nn.attention import require_heads
from turborec.nn.keyed import mix
from turborec.nn.linear import Context
from turborec.nn.longformer import FIRST_POSITION, TextEncoder, TextShape, Tokens
from turborec.nn.masked_words import Hidden, MaskedWords, WordHead, hide
from turborec.recipe import Config as BaseConfig

logger = logging.getLogger("turborec")

TYPES = 4
"""Of tokens: of a text's first one, of an attribute's name, of what it says, and one of padding that checkpoints have."""

CODE = 1
"""Of what makes an item's vector of its tokens and weights; vectors of another are not found."""

ENCODED = 16_384
"""Tokens of items that are encoded together."""


class Config(BaseConfig):
    """Text Is All You Need (Li et al., KDD 2023, arXiv 2305.13731), its pre-training and its fine-tuning.

    Fine-tuning: all items are encoded at the beginning of each epoch, and the history's vector is to be nearest, by the cosine
    over `temperature`, to that of the item which follows; a stage with `refresh: false` leaves the items as they are. That is
    for an encoder that can read: drawn weights would make all vectors one. `items: trained` is for those.
    Pre-training: `items: in_batch` compares with what follows in the other histories of the batch alone, and `masked_words`
    adds the losses of naming hidden words of both. Deliberate deviations: pre-norm blocks unless `norm: post` is stated, no
    dropout on attention weights and none on an item's own text, a history's first event is never predicted (the authors' code
    also asks of empty histories what follows), an item that follows twice in a batch stands there once, and each process
    compares with its own share of the batch.
    """

    kind: Literal["recformer"] = "recformer"
    batch: ClassVar[type[SequenceBatch]] = SequenceBatch

    width: int = Field(64, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    hidden: int = Field(256, ge=1, description="width of the feed-forward layer")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="on the embeddings and on every residual branch")
    norm: Literal["pre", "post"] = Field("pre", description="where blocks normalise; the paper's, and its checkpoints': post")
    norm_eps: float = Field(1e-5, gt=0.0, description="what norms add to a variance")
    window: int = Field(64, ge=2, multiple_of=2, description="tokens that a token sees, half of them on either side")
    max_tokens: int = Field(1024, ge=2, description="of a history, the newest items' first")
    temperature: float = Field(0.05, gt=0.0, description="what cosines are divided by")
    items: Literal["kept", "trained", "in_batch"] = Field(
        "kept",
        description="kept: as they were encoded last; trained: those that a step compares are encoded in it, and learn; "
        "in_batch: so are they, and they are those that follow in the batch",
    )
    masked_words: MaskedWords | None = Field(None, description="words that are hidden, and named again; {}: as in the paper")
    refresh_every: int = Field(1, ge=1, description="epochs between two encodings of all items")
    ids: bool = Field(
        False, description="also learn a vector for each item, added to its tokens, from zero: of new items there is text alone"
    )
    train_words: bool = Field(True, description="false: the vectors of tokens stay what they are")
    pooling: Literal["first", "mean"] = Field(
        "first", description="what stands for a text: its first token, or the mean of all"
    )
    texts: Texts = Texts()
    pretrained: str | None = Field(
        None,
        min_length=1,
        description="an encoder that training begins with: a checkpoint of RecFormer, a Longformer or a BERT, its folder, "
        "minilm, or a name on the Hugging Face hub",
    )
    loss: CatalogueLoss = CrossEntropy()

    @field_validator("pretrained")
    @classmethod
    def _pretrained_is_found_from_anywhere(cls, pretrained: str | None) -> str | None:
        return pretrained if pretrained in (None, "minilm") else from_anywhere(str(pretrained))

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Config":
        require_heads(self.width, self.heads)
        return self

    @model_validator(mode="after")
    def _batches_have_no_negatives(self) -> "Config":
        if self.items == "in_batch" and not isinstance(self.loss, CrossEntropy | Focal):
            raise ValueError("items: in_batch compares with the items of the batch: expected the loss cross_entropy or focal")
        return self

    def build(self, spec: DataSpec) -> "RecFormer":
        """The model for data of this shape, with freshly drawn weights."""
        return RecFormer(self, spec)


class RecFormer(Model):
    """The module. The vectors of items are no parameters: they are encoded, and kept until they are encoded anew."""

    made_anew: ClassVar[frozenset[str]] = frozenset(("table", "encoded"))

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__()
        if spec.texts is None:
            raise UserError("recformer is built from the texts of its items: its parameters are known with its data.")
        self.config, self.spec = config, spec
        self.texts = texts = spec.texts  # on the processor, where batches are made
        self.encoder = TextEncoder(
            TextShape(
                vocabulary=texts.vocabulary,
                positions=config.max_tokens + FIRST_POSITION,
                types=TYPES,
                item_positions=spec.max_length + 1,
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                hidden=config.hidden,
                window=config.window,
                dropout=config.dropout,
                norm_eps=config.norm_eps,
                norm=config.norm,
                every_state=config.masked_words is not None,
                pooling=config.pooling,
            )
        )
        self.encoder.words.weight.requires_grad_(config.train_words)
        self.ids: nn.Embedding | None = None
        if config.ids:
            self.ids = nn.Embedding(spec.items + 1, config.width)
            nn.init.zeros_(self.ids.weight)
        self.register_buffer("table", torch.zeros(spec.items + 1, config.width))
        self.register_buffer("encoded", torch.tensor(0))
        self.given = False  # whether the encoder is as it was given, so that what it makes of items may be kept
        self.gate: Gate | None = None  # of instance-wise adapters
        self.known = 0  # what `encoded` says, without asking a device: the epoch before which that was, from 1 on; 0: never
        self.register_load_state_dict_post_hook(_remember)  # type: ignore[no-untyped-call]
        self.criterion = config.loss.build(spec.item_counts())
        if config.masked_words is not None:
            self.word_head = WordHead(config.width, texts.vocabulary, config.norm_eps)
            self.word_criterion = CrossEntropy().build(torch.ones(texts.vocabulary + 1))
            if texts.mask is None:
                raise UserError("model.masked_words: the tokenizer has no <mask> or [MASK], which hidden words are shown as.")
        if without := lacking(texts):
            logger.warning(f"{without:,} of {spec.items:,} items have no text: all of them are one and the same to this model.")

    table: Tensor
    encoded: Tensor

    @property
    def divisible(self) -> bool:
        """Unless what stands against a target is the rest of the batch."""
        return self.config.items != "in_batch"

    def begin(self) -> None:
        """Take the encoder of the checkpoint that is named. A UserError where it is of another shape."""
        if self.config.pretrained is None:
            return
        begin_with(self.encoder, self.config.pretrained, self.texts.tokenizer)
        self.given = True

    def forward(self, batch: SequenceBatch) -> Loss:
        """The loss of naming every target of the batch by the text of what comes before it."""
        asked = self.asked(batch)
        self.given = self.given and not self.training  # from here on the encoder changes
        tokens = Tokens(asked.tokens, asked.types, asked.item_positions, asked.token_lengths, asked.longest, asked.token_items)
        states = self._vectors(tokens, Context(asked.text_keys)) / self.config.temperature
        if self.config.items == "kept":
            total = self.criterion(states, self._items(), asked.wanted, asked.key)
        else:
            among = asked.wanted if self.config.items == "in_batch" else None
            total = self.criterion.of_rows(states, self._of_items, asked.wanted, asked.key, among)
        terms = {"next_item": Term(total, batch.num_targets())}
        if (masked := self.config.masked_words) is not None:
            for name, hidden, keys in self._hidden(asked, masked.share):
                terms[name] = Term(self._named(hidden, Context(keys), asked.key), len(hidden.wanted), masked.weight)
        return Loss(terms)

    def counts(self, batch: SequenceBatch) -> dict[str, int]:  # type: ignore[override]
        """How many words are hidden."""
        if (masked := self.config.masked_words) is None:
            return {}
        return {name: len(hidden.wanted) for name, hidden, _ in self._hidden(self.asked(batch), masked.share)}

    def _hidden(self, asked: TextBatch, share: float) -> Iterator[tuple[str, Hidden, Tensor]]:
        """The histories' texts and those of the items that follow, with hidden words, by the name of the loss; their keys."""
        texts = Tokens(asked.tokens, asked.types, asked.item_positions, asked.token_lengths, asked.longest)
        site, words = 4 * self.config.layers, self.texts
        assert words.mask is not None
        for name, tokens, keys in (
            ("history_words", texts, mix(asked.text_keys + 1)),
            ("item_words", self._texts_of(asked.wanted[:, None]), mix(asked.text_keys + 2)),
        ):
            yield name, hide(tokens, keys, site + 1, share, words.mask, words.vocabulary), keys

    def _named(self, hidden: Hidden, context: Context, key: int) -> Tensor:
        """The loss of naming all hidden words of texts, each with a random key."""
        tokens, where = hidden.tokens, hidden.where
        context = self._gated(tokens, context)
        states = self.encoder.states(tokens, context)[where]
        states = self.word_head(states, context.of(tokens.rows[where], tokens.places[where]))
        # A table of the catalogue's begins with a row that stands for nothing; words begin with number 0.
        words, bias = F.pad(self.encoder.words.weight, (0, 0, 1, 0)), F.pad(self.word_head.bias, (1, 0))
        total: Tensor = self.word_criterion(states, words, hidden.wanted + 1, key, bias)
        return total

    def asked(self, batch: SequenceBatch, again: bool = False) -> TextBatch:
        """The batch with the texts of what comes before each target."""
        if isinstance(batch, TextBatch):
            return batch
        where = batch.targets.flatten().nonzero().squeeze(1)
        length = batch.items.shape[1]
        if not len(where):  # of an empty row, so that there is something to compute
            where = where.new_zeros(1)
        rows, at = where // length, where % length
        found = self._texts_of(newest_first(batch.items[rows], at))
        return TextBatch(
            **vars(batch),
            tokens=found.ids,
            types=found.types,
            item_positions=found.item_positions,
            token_items=None if self.ids is None else found.items,
            token_lengths=found.lengths,
            longest=found.longest,
            text_keys=mix(batch.keys[rows] + at),
            wanted=batch.targets.flatten()[where],
        )

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Encode all items, where it is time to, and was not done before a training was stopped."""
        if self.config.items != "kept" or self.known == epoch + 1:
            self.given = False
            return
        if self.known and epoch % self.config.refresh_every:
            logger.info(f"The items are as they were encoded {epoch + 1 - self.known} epochs ago")
            return
        began, before = time.monotonic(), self.table.clone()
        self.table.copy_(self._encode_items())
        self.given = False  # from here on it changes
        told = f"{self.spec.items:,} items encoded in {time.monotonic() - began:.1f} s"
        if self.known:
            alike = (before[1:] * self.table[1:]).sum(1).mean()
            told += f"; the cosine to their vectors before is {alike:.4f} on the mean"
        logger.info(told)
        self.encoded.fill_(epoch + 1)
        self.known = epoch + 1

    def scorer(self) -> DotProduct:
        """Scores by the cosine of a history's vector and an item's."""
        return DotProduct(self._history, self._items())

    def _history(self, batch: SequenceBatch) -> Tensor:
        """[B, D]."""
        tokens = self._texts_of(newest_first(batch.items, batch.last()))
        return self._vectors(tokens, Context(batch.keys)) / self.config.temperature

    def _items(self) -> Tensor:
        """The items' vectors as they are kept, or as they are where none were kept yet: [V + 1, D]."""
        return self.table if self.known else self._encode_items()

    def _encode_items(self) -> Tensor:
        """Every item's own text: [V + 1, D], row 0 being zero."""
        found = torch.zeros_like(self.table)
        if not self.given or self.spec.kept is None or (self.ids is not None and self.ids.weight.any()):
            found[1:] = self.encoded_of(torch.arange(1, self.spec.items + 1))
            return found
        hashes = self.texts.hashes()
        # In float32, as the evaluation computes, whoever asks: what is kept is one for all.
        with torch.autocast(self.table.device.type, enabled=False):
            made, new = self._cache(self.spec.kept).through(
                hashes, lambda rows: self.encoded_of(torch.tensor(rows) + 1).cpu().numpy()
            )
        logger.info(f"{len(set(hashes)) - new:,} of {len(set(hashes)):,} texts of items were encoded by these weights before")
        found[1:] = torch.from_numpy(made)
        return found

    def _cache(self, home: Path) -> Cache:
        """Where the vectors of texts by the encoder as it was given are kept; adapters add nothing to it yet."""
        weights = hashlib.sha256()
        for name, weight in sorted(self.encoder.state_dict().items()):
            if ".adapter." in name:
                continue
            weight = weight[:2] if name == "item_positions.weight" else weight  # an item's own text has no other
            weights.update(f"{name} {weight.dtype}".encode())
            weights.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        shape = {name: fact for name, fact in vars(self.encoder.shape).items() if name not in ("dropout", "item_positions")}
        told = {"kind": "recformer", "weights": weights.hexdigest(), "code": CODE, "begin": self.texts.begin}
        return open_cache(home, told | shape)

    @torch.no_grad()
    def encoded_of(self, items: Tensor) -> Tensor:
        """The vectors of some items' own texts, those of like length together: int64 [N] -> float32 [N, D]."""
        training = self.training
        self.eval()
        found = self.table.new_empty(len(items), self.table.shape[1])
        lengths = (self.texts.offsets[items + 1] - self.texts.offsets[items]).numpy() + 1
        order = lengths.argsort(kind="stable")
        for some in filled(lengths[order], ENCODED):
            rows = torch.from_numpy(order[some])
            found[rows.to(found.device)] = self._of_items(items[rows].to(found.device))
        self.train(training)
        return found

    def _of_items(self, items: Tensor) -> Tensor:
        """int64 [N] -> [N, D]; nothing about an item's own text is random."""
        return self._vectors(self._texts_of(items[:, None]), Context(keys=None))

    def _texts_of(self, shown: Tensor) -> Tokens:
        """Items, newest first, as the text of their history: int64 [N, K], 0 where there is none."""
        return tokens_of(shown[:, : self.spec.max_length].cpu(), self.texts, self.config.max_tokens).to(shown.device)

    def _vectors(self, tokens: Tokens, context: Context) -> Tensor:
        """Of each text a vector of length one, in float32: [N, D]."""
        added = None
        if self.ids is not None and tokens.items is not None:  # nothing is added to a text's first token
            added = rows_of(self.ids.weight, tokens.items) * (tokens.items > 0)[:, None]
        states: Tensor = self.encoder(tokens, self._gated(tokens, context), added)
        return F.normalize(states.float(), dim=-1)

    def _gated(self, tokens: Tokens, context: Context) -> Context:
        """The context with what instance-wise adapters count for each text, by the frozen encoder's vector of it."""
        if self.gate is None:
            return context
        if self.gate.other is not None:
            raise UserError("adapters.gate: recformer is gated by its own frozen encoder's vector of a text: leave it at base.")
        with torch.no_grad():
            vectors = self.encoder(tokens, Context(keys=None, adapted=False))
        return replace(context, gates=self.gate.shares(vectors))


def _remember(model: RecFormer, keys: object) -> None:
    model.known, model.given = int(model.encoded), False


def newest_first(items: Tensor, last: Tensor) -> Tensor:
    """Each row's items from a place on, backwards: int64 [N, L], [N] -> [N, L], 0 where there are no more."""
    at = last[:, None] - torch.arange(items.shape[1], device=items.device)
    return torch.where(at >= 0, items.gather(1, at.clamp(min=0)), 0)


def tokens_of(shown: Tensor, texts: ItemTokens, most: int) -> Tokens:
    """Texts of a first token and the items' tokens behind it, at most so many: int64 [N, K], 0 where there is none.

    Positions of items count from 1, the newest one's. What is too long loses its end, which is its oldest items'.
    """
    sizes = texts.offsets[shown + 1] - texts.offsets[shown]
    sizes = torch.minimum(sizes, (most - 1 - (sizes.cumsum(1) - sizes)).clamp(min=0))
    pieces = F.pad(sizes, (1, 0), value=1).flatten()  # of each text its first token, then each item
    begin = F.pad(texts.offsets[shown], (1, 0)).flatten()
    piece = torch.arange(len(pieces), device=shown.device).repeat_interleave(pieces)
    within = torch.arange(len(piece), device=shown.device) - (pieces.cumsum(0) - pieces)[piece]
    place = piece % (shown.shape[1] + 1)
    first, source = place == 0, begin[piece] + within
    source = source.clamp(max=max(0, len(texts.ids) - 1))
    ids, types = (part[source].long() if len(part) else torch.zeros_like(source) for part in (texts.ids, texts.types))
    ids, types = torch.where(first, texts.begin, ids), torch.where(first, 0, types)
    lengths = sizes.sum(1) + 1
    return Tokens(ids, types, place, lengths, int(lengths.max()), F.pad(shown, (1, 0)).flatten()[piece])
