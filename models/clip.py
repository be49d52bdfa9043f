"""Zero-shot labels of every attribute by any open_clip model."""

import copy
import difflib
import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import open_clip
import torch
import torch.nn.functional as F

from models import hub
from models.precision import bf16_is_fast
from shards.atomic_io import read_bytes, read_json
from shards.attributes import Attribute, AttributeTable, built_in_attributes
from shards.errors import FairfaceError, WeightsUnavailable

PROMPTS = Path(__file__).with_name("prompts.toml")
MAX_CONFIG_BYTES = 1 << 20  # of a file of prompts
MAX_INPUT_PIXELS = 4096  # side of a model's input
MAX_COLOUR = 1e6  # of a mean or standard deviation
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # open_clip's names on the hub

Prompts = dict[str, Any]  # "templates": list of sentences; attribute: {class: description}


class Labeller:
    """A CLIP model and the text embeddings of its classes, which are computed once.

    `name` is "<name>@<8 hexadecimal digits>": the digits are a hash of weights, preprocessing and prompts, so that
    different labellers have different names. `attributes` are those that it labels, by name; `size` is the side of the
    model's input in pixels, `dim` the width D of its embeddings, `bf16` whether images are encoded in bfloat16.
    """

    method = "clip"  # the name of its method in tables of labels
    thresholds: Mapping[str, float] = {}  # no label is unsure: CLIP's probabilities are not calibrated

    def __init__(
        self,
        model: open_clip.CLIP,
        tokenizer: Callable[[list[str]], torch.Tensor],
        *,
        prompts: Prompts,
        name: str,
        attributes: AttributeTable | None = None,
        device: str | torch.device = "cpu",
    ):
        """`prompts` describe some of `attributes`, by default the built-in ones."""
        known = (attributes or built_in_attributes()).labelled
        self.attributes: Mapping[str, Attribute] = {name: item for name, item in known.items() if name in prompts}
        self.device = torch.device(device)
        preprocess = open_clip.get_model_preprocess_cfg(model)
        order = [[name, *attribute.names] for name, attribute in self.attributes.items()]
        self.name = f"{name}@{weights_hash(model, preprocess, prompts, order)}"
        self.model = model.to(self.device).eval()
        size = preprocess["size"]
        self.size = size if isinstance(size, int) else size[0]
        self.mean, self.std = (
            torch.tensor(preprocess[key], device=self.device).view(1, 3, 1, 1) for key in ("mean", "std")
        )
        self.bf16 = bf16_is_fast(self.device)
        with torch.inference_mode():
            self.dim = model.encode_text(tokenizer(["a face"]).to(self.device)).shape[1]
        self.text = self.encode_text(tokenizer, prompts)
        self.scale = model.logit_scale.detach().exp()

    def encode_text(self, tokenizer: Callable[[list[str]], torch.Tensor], prompts: Prompts) -> dict[str, torch.Tensor]:
        """Text embeddings by attribute, float32 [D, K]: the L2-normalised mean of the L2-normalised templates."""
        return {
            name: open_clip.build_zero_shot_classifier(
                self.model,
                tokenizer,
                [prompts[name][item] for item in attribute.names],
                prompts["templates"],
                num_classes_per_batch=None,
                device=self.device,
            )
            for name, attribute in self.attributes.items()
        }

    def restrict_to(self, attributes: AttributeTable) -> "Labeller":
        """This labeller, limited to attributes that have the same classes in `attributes`."""
        known = {name: item.names for name, item in attributes.labelled.items()}
        kept = {name: item for name, item in self.attributes.items() if known.get(name) == item.names}
        if len(kept) == len(self.attributes):
            return self
        labeller = copy.copy(self)
        labeller.attributes = kept
        return labeller

    @torch.inference_mode()
    def label(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Class probabilities and embeddings of uint8 images [B, 3, S, S], on the labeller's device.

        Returns {attribute: float32 [B, K]} for each of its `attributes`, with rows that sum to 1, and embeddings of
        length 1, float16 [B, D]. The probabilities are a softmax over the attribute's classes with the model's own
        logit scale (Radford et al. 2021, section 3.1.2). Raises ValueError for images of another shape or type.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected uint8 images [B, 3, S, S], got {images.dtype} {list(images.shape)}")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeddings = self.model.encode_image(self.prepare(images))
        embeddings = F.normalize(embeddings.float(), dim=-1)
        probabilities = {name: (self.scale * embeddings @ self.text[name]).softmax(1) for name in self.attributes}
        return probabilities, embeddings.half()

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Prepare images for the model, on its device: resized (bicubic, antialiased) and standardised.

        Takes uint8 [B, 3, S, S], returns float32 [B, 3, size, size].
        """
        pixels = images.to(self.device, non_blocking=True).float() / 255
        if pixels.shape[2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self.mean) / self.std


def weights_hash(model: torch.nn.Module, *settings: Any) -> str:
    """8 hexadecimal digits of the SHA-256 of the weights, as float32 from any device, and of `settings`, as JSON."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.float().cpu().reshape(-1).numpy())
    return digest.hexdigest()[:8]


def read_prompts(prompts: str | Path = "faces", attributes: AttributeTable | None = None) -> Prompts:
    """Read a prompt set: by its name in prompts.toml, or the single set in a TOML file of the same format.

    Returns {"templates": [str, ...], attribute: {class: description}}, for some of `attributes`, by default the
    built-in ones. The descriptions of the set `faces` are those of the attributes themselves; of another set in
    prompts.toml, attributes with other classes are left out. Raises FairfaceError for an unknown set, and for a file
    that is not a valid set.
    """
    attributes = attributes or built_in_attributes()
    sets = tomllib.loads(PROMPTS.read_text(encoding="utf-8"))
    sets["faces"] |= {name: attribute.prompts for name, attribute in attributes.items() if attribute.prompts}
    if str(prompts) in sets:
        known = {name: set(attribute.names) for name, attribute in attributes.labelled.items()}
        return {
            name: item
            for name, item in sets[str(prompts)].items()
            if name == "templates" or set(item) == known.get(name)
        }
    try:
        table = tomllib.loads(read_bytes(Path(prompts), limit=MAX_CONFIG_BYTES).decode())
        return validate_prompts(table, str(prompts), attributes)
    except OSError:
        raise FairfaceError(f"there is no prompt set or file '{prompts}'; the sets are {', '.join(sets)}") from None
    except ValueError as error:  # includes TOML and UTF-8 errors
        raise FairfaceError(f"{prompts} is not a TOML file of prompts: {str(error)[:200]}") from None
    except RecursionError:
        raise FairfaceError(f"{prompts} is not a TOML file of prompts: it is nested too deeply") from None


def validate_prompts(prompts: Prompts, source: str, attributes: AttributeTable) -> Prompts:
    """`prompts`, if they have templates with one {} each, and all classes of every attribute that they have.

    Raises FairfaceError, which names the `source`, otherwise.
    """
    templates = prompts.get("templates")
    if not isinstance(templates, list) or not templates or not all(map(is_template, templates)):
        raise FairfaceError(f"prompts {source}: 'templates' must be sentences with one {{}} each")
    names = prompts.keys() - {"templates"}
    if not names or names - attributes.labelled.keys():
        raise FairfaceError(
            f"prompts {source}: the attributes must be among {', '.join(attributes.labelled)}, "
            f"found {', '.join(sorted(names)) or 'none'}"
        )
    for name in names:
        described = prompts[name]
        if not isinstance(described, dict) or not all(isinstance(text, str) for text in described.values()):
            raise FairfaceError(f"prompts {source}: {name} must be a table with a description of each class")
        if wrong := described.keys() ^ set(attributes[name].names):
            raise FairfaceError(
                f"prompts {source}: {name} needs exactly the classes "
                f"{', '.join(attributes[name].names)}; check {', '.join(sorted(wrong))}"
            )
    return prompts


def is_template(text: object) -> bool:
    """Whether `text` is a sentence with exactly one placeholder {}, and no other braces."""
    return isinstance(text, str) and text.count("{}") == text.count("{") == text.count("}") == 1


def load_labeller(
    name: str,
    pretrained: str | Path,
    *,
    prompts: str | Path = "faces",
    attributes: AttributeTable | None = None,
    device: str | torch.device = "cpu",
) -> Labeller:
    """Load the labeller of a model of `open_clip.list_models()` with the weights of a tag or of a local file.

    It labels those of `attributes`, by default the built-in ones, that the prompts describe.

    Raises FairfaceError for an unknown model, tag or prompt set. Raises WeightsUnavailable for a file that is not a
    checkpoint of the model, and, within seconds, for weights that are neither cached nor can be downloaded.
    """
    prompt_set = read_prompts(prompts, attributes)
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), 3) or ["ViT-B-32-quickgelu"]
        raise FairfaceError(f"open_clip has no model '{name}'; did you mean {' or '.join(close)}?")
    path = find_weights(name, str(pretrained))
    try:
        preprocess = preprocess_config(name, str(pretrained), path)
        model = open_clip.create_model(name, str(path), force_preprocess_cfg=preprocess)
        tokenizer = open_clip.get_tokenizer(name)
        if not all(weights.isfinite().all() for weights in model.parameters()):
            raise ValueError("a weight is NaN or infinite")
    except FairfaceError:
        raise
    except Exception as error:  # torch.load and safetensors raise many types, which all mean the same here
        raise WeightsUnavailable(f"{path} is not a checkpoint of {name} ({first_line(error)})") from error
    tag = path.stem if path == Path(pretrained) else str(pretrained)
    return Labeller(model, tokenizer, prompts=prompt_set, name=f"{name}-{tag}", attributes=attributes, device=device)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def preprocess_config(name: str, pretrained: str, path: Path) -> dict[str, Any]:
    """Mean, standard deviation and size for the weights in `path`.

    For a tag they are the tag's; for a local file, those in the open_clip_config.json of its folder, or otherwise those
    of the model's first tag.
    """
    config_file = path.with_name("open_clip_config.json")
    if config := open_clip.get_pretrained_cfg(name, pretrained):
        return config
    if config_file.exists():
        content = read_json(config_file)
        return validate_preprocess(
            content.get("preprocess_cfg", {}) if isinstance(content, dict) else None, config_file
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    return open_clip.get_pretrained_cfg(name, tags[0]) if tags else {}


def validate_preprocess(config: Any, source: Path) -> dict[str, Any]:
    """`config`, if it is an object with a valid mean, standard deviation and size, as far as they are given.

    Raises FairfaceError, which names the `source`, otherwise.
    """
    if not isinstance(config, dict):
        raise FairfaceError(f"{source}: 'preprocess_cfg' is not an object: correct or remove the file")
    sizes = config.get("size", [1])
    sizes = sizes if isinstance(sizes, list) and sizes else [sizes]
    if not all(type(size) is int and 1 <= size <= MAX_INPUT_PIXELS for size in sizes) or len(sizes) > 2:
        raise FairfaceError(f"{source}: 'size' is not a number of pixels from 1 to {MAX_INPUT_PIXELS:,}")
    for name, low in (("mean", -MAX_COLOUR), ("std", 0.0)):
        values = config.get(name, [1.0] * 3)
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) != 3 or not all(low < value < MAX_COLOUR for value in values):
            raise FairfaceError(f"{source}: {name!r} is not a list of three numbers, one for each colour")
    return config


def find_weights(name: str, pretrained: str) -> Path:
    """Find the file of the weights: `pretrained` itself, or the tag's file, which is downloaded if it is not cached.

    Raises FairfaceError for an unknown tag, WeightsUnavailable if the file cannot be downloaded.
    """
    config = open_clip.get_pretrained_cfg(name, pretrained)
    if not config:
        if Path(pretrained).is_file():
            return Path(pretrained)
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise FairfaceError(f"'{pretrained}' is neither a file nor a tag of {name}, whose tags are: {tags}")
    repo, _, file = config["hf_hub"].rpartition("/")
    if cached := hub.cached_file(repo, (file,) if file else WEIGHTS_FILES):
        return cached
    try:
        hub.check_reachable(repo, file or WEIGHTS_FILES[0])
        return Path(open_clip.download_pretrained(config))
    except (OSError, RuntimeError) as error:
        raise_unavailable(f"{name}/{pretrained}", repo, file=file or WEIGHTS_FILES[0], error=error)


def raise_unavailable(model: str, repo: str, *, file: str, error: Exception) -> NoReturn:
    """Raise WeightsUnavailable with instructions for copying the weights to this machine."""
    raise WeightsUnavailable(
        f"the weights of {model} are not cached and could not be downloaded ({first_line(error)}). "
        f"On a machine with network access, run `hf download {repo} {file}`, copy the file here and pass "
        f"--clip-pretrained /path/to/{file}"
    ) from error
