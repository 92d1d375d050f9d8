"""
Whisper: the only file that knows its ids, its prompt, its window and its generation settings.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from kidspeech.config import Decode
from kidspeech.errors import CheckpointError, RecipeError
from kidspeech.features import LogMel
from kidspeech.guards import Decoded
from kidspeech.models.base import IGNORED, BaseASRModel, Batch
from kidspeech.models.lora import add_lora, merged_state
from kidspeech.models.whisper_decoding import GreedyDecoder
from kidspeech.models.whisper_vocabulary import WHOLE, english_tokenizer, for_4_and_5

FRAME_STEP = 32  # a trimmed batch has a multiple of this many frames (0.32 s): few shapes, little padding
MULTILINGUAL_END = 50257  # <|endoftext|> of multilingual checkpoints; English-only ones have GPT-2's 50256
FIRST_TOKENS = 8  # every clip may have these, and max_tokens_per_second more


class WhisperModel(BaseASRModel):
    """
    Whisper of any size, English-only or multilingual.
    """

    _decoder_of: tuple[Any, ...] = ()
    _kept_decoder: GreedyDecoder

    @cached_property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        """
        The tokenizer, with the prompt's language and task set.

        Raises:
            CheckpointError: the recipe's folder or Hub id has none.
            RecipeError: model.language does not fit the vocabulary.
        """
        if self.config.random is not None:
            return english_tokenizer(self.config.random.get("vocab_size", WHOLE))
        # the same class in transformers 5; in 4 the other one wants files that 5 no longer writes
        return _prompted(self._read(transformers.WhisperTokenizerFast), self.config.language)

    @cached_property
    def extractor(self) -> transformers.WhisperFeatureExtractor:
        """
        The feature extractor.

        Raises:
            CheckpointError: the recipe's folder or Hub id has none.
        """
        if self.config.random is not None:
            return transformers.WhisperFeatureExtractor()
        _ = self.tokenizer  # a language that does not fit is told before any audio is read
        return self._read(transformers.WhisperFeatureExtractor)

    @cached_property
    def processor(self) -> transformers.WhisperProcessor:
        """
        Tokenizer and feature extractor as one. Preparing does without: importing its class takes two seconds.
        """
        return transformers.WhisperProcessor(self.extractor, self.tokenizer)

    @cached_property
    def featurizer(self) -> LogMel:
        """
        Log-mel spectrograms with as many bands as the checkpoint's feature extractor.
        """
        filters = np.ascontiguousarray(self.extractor.mel_filters.T, dtype=np.float32)
        return LogMel(filters, max_seconds=float(self.extractor.chunk_length))

    @cached_property
    def prompt(self) -> list[int]:
        """
        The ids decoding starts from: start of transcript, language and task where there are several, no timestamps.
        """
        return list(self.tokenizer.prefix_tokens)

    @property
    def label_settings(self) -> dict[str, Any]:
        """
        The vocabulary and the prompt.
        """
        vocabulary = "\n".join(sorted(self.tokenizer.get_vocab()))
        return {"vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest()[:12], "prompt": self.prompt}

    @cached_property
    def max_labels(self) -> int:
        """
        Whisper's decoder has 448 positions.
        """
        return int(transformers.WhisperConfig().max_target_positions)

    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """
        Return prompt, text and end of text, without the start of transcript: shifting adds it once more otherwise.

        The text is tokenised with the space before it that Whisper was trained with.
        """
        spaced = [f" {text.strip()}" for text in texts]
        tokens = self.tokenizer(spaced, add_special_tokens=False).input_ids if spaced else []
        return [[*self.prompt[1:], *ids, self.tokenizer.eos_token_id] for ids in tokens]

    def n_targets(self, n_labels: int) -> int:
        """
        The prompt is given, not guessed: it carries no loss.
        """
        return n_labels - len(self.prompt) + 1

    def load(self) -> None:
        """
        Read or make the weights, in float32, with the recipe's dropout really in the modules.

        Raises:
            CheckpointError: there are none where the recipe says.
            RecipeError: model.random holds a size that transformers does not know; or LoRA is wanted and peft missing.
        """
        rates = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), self.config.dropout)
        network = self._new(rates) if self.config.random is not None else self._pretrained(rates)
        network.model.encoder.forward = MethodType(short_context, network.model.encoder)
        if self.config.lora_rank is not None:
            add_lora(network, self.config)
        if self.config.freeze_encoder:
            network.freeze_encoder()
        if self.config.gradient_checkpointing:
            network.gradient_checkpointing_enable({"use_reentrant": False})
        self.network = network

    def compile(self) -> None:
        """
        Compile the encoder's layer and the decoder's: all layers of a kind share the code, which a whole-network
        compilation would make 12 to 32 times over.
        """
        for layer in (*self.network.model.encoder.layers, *self.network.model.decoder.layers):
            layer.compile(dynamic=True)

    def loss(self, batch: Batch) -> torch.Tensor:
        """
        Return the cross-entropy summed over text tokens and end of text.
        """
        labels = batch["labels"]
        start = labels.new_full((len(labels), 1), self.prompt[0])
        inputs = torch.cat([start, labels[:, :-1]], dim=1)
        inputs = inputs.masked_fill(inputs == IGNORED, self.processor.tokenizer.eos_token_id)
        output = self.network(input_features=batch["input_features"], decoder_input_ids=inputs, use_cache=False)
        targets = labels.clone()
        targets[:, : len(self.prompt) - 1] = IGNORED
        logits = output.logits.flatten(0, 1).float()
        return functional.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")

    @torch.inference_mode()  # type: ignore[untyped-decorator]  # torch is not read by mypy here
    def decode(self, batch: Batch, settings: Decode) -> list[Decoded]:
        """
        Decode greedily or by beams, each clip with at most FIRST_TOKENS + max_tokens_per_second tokens.
        """
        with torch.compiler.set_stance("force_eager"):  # steps of one token and caches that grow are other shapes each time
            return self._decode(batch, settings)

    def _decode(self, batch: Batch, settings: Decode) -> list[Decoded]:
        network = self.unwrapped()
        features = batch["input_features"].to(network.device, network.dtype)
        encoded = network.get_encoder()(features)
        caps = [self._cap(seconds, settings.max_tokens_per_second) for seconds in batch["seconds"]]
        ids = self._greedy(encoded, caps) if settings.num_beams == 1 else self._beams(encoded, caps, settings.num_beams)
        end = self.processor.tokenizer.eos_token_id
        texts = self.processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        levels = (4 * features.float().amax(dim=(1, 2)) - 4).tolist()  # log10 of the power: LogMel's last step undone
        return [Decoded(text.strip(), end not in row, level) for text, row, level in zip(texts, ids, levels, strict=True)]

    def _cap(self, seconds: float, per_second: float | None) -> int:
        most = self.max_labels - len(self.prompt)
        return most if per_second is None else min(FIRST_TOKENS + math.ceil(seconds * per_second), most)

    def _greedy(self, encoded: BaseModelOutput, caps: Sequence[int]) -> list[list[int]]:
        ids: list[list[int]] = self._decoder(self.unwrapped())(encoded.last_hidden_state, caps)
        return ids

    def _decoder(self, network: Any) -> GreedyDecoder:
        graphs = network.device.type == "cuda" and not torch.is_autocast_enabled()
        made_for = (network, network.device, network.dtype, graphs)
        if self._decoder_of != made_for:
            own = network.generation_config
            suppress, first = own.suppress_tokens or (), own.begin_suppress_tokens or ()
            end = self.processor.tokenizer.eos_token_id
            self._kept_decoder = GreedyDecoder(network, self.prompt, end, suppress, first, graphs=graphs)
            self._decoder_of = made_for
        return self._kept_decoder

    def _beams(self, encoded: BaseModelOutput, caps: Sequence[int], beams: int) -> list[list[int]]:
        # transformers' plain generation loop: Whisper's own pads every clip back to 30 s first
        network = self.unwrapped()
        prompt = torch.tensor([self.prompt] * len(caps), device=encoded.last_hidden_state.device)
        stop = length_caps(torch.tensor(caps, device=prompt.device) + len(self.prompt))
        ids = transformers.GenerationMixin.generate(
            network,
            encoder_outputs=encoded,
            attention_mask=encoded.last_hidden_state.new_ones(len(caps), 1),  # unused, and missed loudly where it is not given
            decoder_input_ids=prompt,
            generation_config=self._generation(network.generation_config, max(caps), beams),
            stopping_criteria=transformers.StoppingCriteriaList([stop]),
        )
        return [row[len(self.prompt) :] for row in ids.tolist()]

    def save(self, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """
        Write weights (with LoRA merged into them), configuration, generation settings, tokenizer and feature extractor.
        """
        network = self.unwrapped()
        merged = merged_state(state or network.state_dict(), self.config)
        for name in network._tied_weights_keys:  # gathered by FSDP they are copies, and would be written twice
            merged.pop(name)
        network.save_pretrained(folder, state_dict=merged)
        self.processor.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        path.write_text(for_4_and_5(path.read_text(encoding="utf-8")), encoding="utf-8")

    def frames(self, longest: int, *, padded: bool) -> int:
        """
        Return 3000 where the context is padded, else *longest* rounded up to FRAME_STEP.
        """
        window = int(self.processor.feature_extractor.nb_max_frames)
        return window if padded else min(math.ceil(longest / FRAME_STEP) * FRAME_STEP, window)

    def _read(self, kind: Any) -> Any:
        try:
            return kind.from_pretrained(self.config.pretrained)
        except (OSError, ValueError, TypeError) as error:
            raise _no_checkpoint(self.config.pretrained, error) from error

    def _new(self, rates: dict[str, float]) -> transformers.WhisperForConditionalGeneration:
        sizes = self.config.random or {}
        unknown = sorted(set(sizes) - set(transformers.WhisperConfig().to_dict()))
        if unknown:
            msg = f"model.random: WhisperConfig has no {', '.join(unknown)}"
            raise RecipeError(msg)
        tokenizer, end = self.processor.tokenizer, self.processor.tokenizer.eos_token_id
        ids = {"decoder_start_token_id": self.prompt[0], "eos_token_id": end, "pad_token_id": end, "bos_token_id": end}
        plain = {"vocab_size": len(tokenizer), "suppress_tokens": None, "begin_suppress_tokens": None}
        config = transformers.WhisperConfig(**(sizes | plain | ids | rates))
        network = transformers.WhisperForConditionalGeneration(config)
        network.generation_config = transformers.GenerationConfig(
            **ids,
            is_multilingual=False,
            no_timestamps_token_id=self.prompt[-1],
            max_length=self.max_labels,
            return_timestamps=False,
        )
        return network

    def _pretrained(self, rates: dict[str, float]) -> transformers.WhisperForConditionalGeneration:
        source = self.config.pretrained
        try:
            network = transformers.WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32, **rates)
        except (OSError, ValueError, RuntimeError) as error:
            raise _no_checkpoint(source, error) from error
        network.generation_config.forced_decoder_ids = None
        if len(self.prompt) > 2:  # multilingual: what plain transformers asks for when it loads best/
            network.generation_config.language, network.generation_config.task = self.config.language, "transcribe"
        return network

    def _generation(self, own: transformers.GenerationConfig, new_tokens: int, beams: int) -> transformers.GenerationConfig:
        length = min(len(self.prompt) + new_tokens, self.max_labels)
        kept = {name: getattr(own, name, None) for name in ("suppress_tokens", "begin_suppress_tokens")}
        end = self.processor.tokenizer.eos_token_id
        return transformers.GenerationConfig(
            **kept, eos_token_id=end, pad_token_id=end, max_length=length, num_beams=beams, do_sample=False
        )


def short_context(encoder: Any, input_features: torch.Tensor, *_: None, **__: Any) -> BaseModelOutput:
    """
    Encode log-mel features of shape (clips, n_mels, frames), any even number of frames up to 3000.

    Stands in for the forward of transformers' WhisperEncoder, which insists on 3000 frames and spends most of its time in
    the silence of short clips. At 3000 frames it is the same computation, operation for operation.
    """
    hidden = functional.gelu(encoder.conv1(input_features))
    hidden = functional.gelu(encoder.conv2(hidden)).permute(0, 2, 1)
    hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
    hidden = functional.dropout(hidden, p=encoder.dropout, training=encoder.training)
    for layer in encoder.layers:
        # transformers 4 wants a third argument in its layers, a head mask, and returns a tuple; 5 does neither
        masks = (None, None) if "layer_head_mask" in inspect.signature(type(layer).forward).parameters else (None,)
        output = layer(hidden, *masks)
        hidden = output[0] if isinstance(output, tuple) else output
    return BaseModelOutput(last_hidden_state=encoder.layer_norm(hidden))


def length_caps(caps: torch.Tensor) -> Callable[..., torch.Tensor]:
    """
    Return a stopping criterion that ends each sequence at its own number of tokens.

    Args:
        caps: shape (clips,), tokens with the prompt.
    """
    # beam search asks for several candidates a clip at once, a clip's side by side
    return lambda input_ids, *_, **__: input_ids.shape[1] >= caps.repeat_interleave(len(input_ids) // len(caps))


def _prompted(tokenizer: transformers.PreTrainedTokenizerBase, language: str | None) -> transformers.PreTrainedTokenizerBase:
    multilingual = tokenizer.eos_token_id == MULTILINGUAL_END
    if multilingual != (language is not None):
        word = 'give the language, like "en"' if multilingual else "this checkpoint knows English only; leave it out"
        msg = f"model.language: {word}"
        raise RecipeError(msg)
    if multilingual:
        tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
    return tokenizer


def _no_checkpoint(source: str | None, error: Exception) -> CheckpointError:
    first = str(error).strip().split("\n")[0]
    return CheckpointError(
        f"no Whisper checkpoint at {source}: {first}; give a folder that holds one, or a Hub id and a network"
    )
