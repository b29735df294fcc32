"""Backbones: transformers models behind one small face.

``read_model_config`` and ``sketch_sites`` tell all about a model without its weights;
``load_model`` brings it.
"""

from scalepet.backbones.backbone import Backbone
from scalepet.backbones.checkpoint import find_file, first_of
from scalepet.backbones.convert import convert, needs_conversion
from scalepet.backbones.ensemble_tensor import EnsembleTensor, apart, member_of, members_of
from scalepet.backbones.families import (
    FAMILIES,
    T5_HEAD,
    Family,
    class_scores,
    classify,
    score_label_words,
    write_text,
)
from scalepet.backbones.fill import full_shape
from scalepet.backbones.fingerprint import fingerprint
from scalepet.backbones.generation import GENERATION_FILE, ignored_generation
from scalepet.backbones.joints import attend_prefix
from scalepet.backbones.load import (
    Loaded,
    building_under,
    load_model,
    quiet_transformers,
    sketch_model,
    sketch_sites,
    t5_config,
)
from scalepet.backbones.model_config import (
    family_of,
    longest_input,
    picture_shape,
    read_model_config,
)
from scalepet.backbones.overrides import (
    bare,
    detach,
    overridden_modules,
    override,
    recording_additions,
    shadowed,
)
from scalepet.backbones.plain import write_model_config, write_weights
from scalepet.backbones.sites import (
    ATTENTION_PARTS,
    SITE_KINDS,
    Part,
    Site,
    SiteKind,
    list_sites,
    match_sites,
    matches,
)
from scalepet.backbones.tokenizer import load_tokenizer, tokenizer_fingerprint

__all__ = [
    "ATTENTION_PARTS",
    "FAMILIES",
    "GENERATION_FILE",
    "SITE_KINDS",
    "T5_HEAD",
    "Backbone",
    "EnsembleTensor",
    "Family",
    "Loaded",
    "Part",
    "Site",
    "SiteKind",
    "apart",
    "attend_prefix",
    "bare",
    "building_under",
    "class_scores",
    "classify",
    "convert",
    "detach",
    "family_of",
    "find_file",
    "fingerprint",
    "first_of",
    "full_shape",
    "ignored_generation",
    "list_sites",
    "load_model",
    "load_tokenizer",
    "longest_input",
    "match_sites",
    "matches",
    "member_of",
    "members_of",
    "needs_conversion",
    "overridden_modules",
    "override",
    "picture_shape",
    "quiet_transformers",
    "read_model_config",
    "recording_additions",
    "score_label_words",
    "shadowed",
    "sketch_model",
    "sketch_sites",
    "t5_config",
    "tokenizer_fingerprint",
    "write_model_config",
    "write_text",
    "write_weights",
]
