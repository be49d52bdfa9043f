"""The options that determine a detector's weights, in addition to the faces."""

from dataclasses import dataclass

from models.detectors import DetectorSpec, resolve_spec

DETECTOR_EXECUTION_OPTIONS = ("feed",)  # change the speed, not the result: they may differ when a run is resumed


@dataclass(frozen=True)
class DetectorOptions:
    """The options that, with the faces, determine a detector's weights; the defaults are AI-Face's benchmark's."""

    model: str = "xception"  # a key of DETECTORS
    image_size: int = 256  # pixels
    batch_size: int = 128  # images, or pairs of a real face and a fake
    epochs: int = 10
    lr: float = 5e-4
    momentum: float = 0.9  # of SGD; beta1 of Adam and AdamW
    weight_decay: float = 5e-3
    lr_step: int = 60  # epochs after which the learning rate is multiplied by lr_gamma
    lr_gamma: float = 0.9
    backbone: str | None = None  # a name for `find_backbone`; None: the detector's own
    pretrained: str | None = None  # a tag or a file; None: the detector's own tag
    from_scratch: bool = False
    seed: int = 0
    precision: str = "auto"  # bf16 | fp32
    compile: bool | None = None  # None: where it is faster
    feed: str = "auto"  # resident | streaming

    @property
    def spec(self) -> DetectorSpec:
        """The spec of `model` on its backbone."""
        return resolve_spec(self.model, self.backbone)

    @property
    def images_per_step(self) -> int:
        """Images of one training step, on all ranks."""
        return self.batch_size * (2 if self.spec.paired_batches else 1)
