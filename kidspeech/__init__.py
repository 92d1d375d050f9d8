"""
Fine-tune speech recognition on children's voices, and measure it on children the model never heard.

An utterance takes five hops, each in its own module and each usable alone::

    manifest.read_manifest -> dataset.build_dataset -> collate.Collator -> models: loss, generate -> metrics.score
"""

from importlib.metadata import version

__version__ = version("kidspeech")
FEATURES_VERSION = 1  # raise it by hand whenever the numbers of kidspeech.features change: it renews every cache
