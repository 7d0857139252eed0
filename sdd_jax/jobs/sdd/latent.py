"""The translator of latents as a manipulator: its options, data and export."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from sdd_jax.data.pipeline import HostBatch
from sdd_jax.data.prompts import literal, prompted
from sdd_jax.data.records import PortraitSource
from sdd_jax.data.sources.images import augmented, open_source
from sdd_jax.jobs.sdd.data import EditData, Parts, first_images
from sdd_jax.jobs.streams.latents import encoded_portraits
from sdd_jax.jobs.streams.portraits import stream_of
from sdd_jax.models.translator import Translator, save_translator
from sdd_jax.objectives.manipulators import LatentManipulator
from sdd_jax.types import Frozen, ModelBundle, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Config of the manipulator: the translator's output (`models.translator`); reencode: see `LatentManipulator`."""

    kind: str = "latent"
    output: str = "residual"
    reencode: bool = False


def latent_parts(
    config: ConfigDict, data: EditData, chosen: LatentConfig, bundle: ModelBundle, frozen: Frozen
) -> Parts:
    """The teacher's UNet as a translator of its latents, portraits' encoded once."""
    phrase = [literal(data.prompt)]
    ids_2 = None if bundle.tokenize_2 is None else bundle.tokenize_2(phrase)
    try:
        translator = Translator(model=bundle, output=chosen.output)
    except ValueError as error:
        raise ValueError(f"config.manipulator: {error}") from None

    def stream(start_step: int) -> Iterator[HostBatch]:
        if data.source != "portraits":
            images = data.images()
            transform = augmented(images, prompted(bundle.tokenize, data.prompt, None, bundle.tokenize_2))
            return stream_of(config, open_source(images), transform)(start_step)
        source = PortraitSource(data.split, data.count)
        moments = encoded_portraits(bundle, frozen["vae"], source)
        transform = prompted(bundle.tokenize, data.prompt, moments, bundle.tokenize_2)
        return stream_of(config, source, transform)(start_step)

    def export(params: Params, directory: Path) -> None:
        save_translator(translator, params, {"vae": frozen["vae"], **frozen["text"]}, [data.prompt], directory)

    return Parts(
        manipulator=LatentManipulator(model=bundle, translator=translator, reencode=chosen.reencode),
        frozen={**frozen, "phrase": (bundle.tokenize(phrase), ids_2)},
        images=data.open,
        made_of=data.facts,
        stream=stream,
        export=export,
        examples=lambda count: first_images(data.open(), count),
    )
