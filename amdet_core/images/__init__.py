"""The published image experiment of MIMIC: a clean encoder, BadEncoder's backdoor, purification, a classifier."""

from .badencoder import attack, typical
from .downstream import Counts, downstream
from .drawn import drawn
from .mimic import purify
from .network import ImageEncoder, fresh, frozen, load_encoder, made_by, save_encoder
from .pictures import Pictures, read_picture, read_pictures, write_pictures
from .simclr import clean

__all__ = [
    "Counts",
    "ImageEncoder",
    "Pictures",
    "attack",
    "clean",
    "downstream",
    "drawn",
    "fresh",
    "frozen",
    "load_encoder",
    "made_by",
    "purify",
    "read_picture",
    "read_pictures",
    "save_encoder",
    "typical",
    "write_pictures",
]
