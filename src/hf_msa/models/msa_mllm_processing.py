"""Processors of multimodal language models, also where torchvision is absent.

transformers builds its video processors on torchvision, and without it an omni processor cannot be made at all, not even
for text. `FramesVideoProcessor` does with numpy and PIL what the models of the Qwen family need of it: frames come as
arrays, so nothing has to be decoded or sampled.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_transforms import resize
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import Qwen2_5OmniProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.utils.import_utils import is_torchvision_available
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import make_batched_videos

_OMNI = ("qwen2_5_omni", "qwen2_5_omni_thinker")


class FramesVideoProcessor(VideoProcessorMixin):
    """Turns frames into the patches that vision towers of the Qwen2-VL kind read.

    Resizing is PIL's bicubic, as in the image processor that transformers falls back to; the stock video processor uses
    torchvision's, whose rounding differs.

    Args:
        size: `shortest_edge` and `longest_edge`: fewest and most pixels of a frame after resizing. Older checkpoints say
            `min_pixels` and `max_pixels`.
        image_mean, image_std: Of each colour channel.
        patch_size: Edge of a square patch in pixels.
        temporal_patch_size: Frames in a patch; a clip is filled up with its last frame.
        merge_size: Patches along an edge that the vision tower merges into one token.
        **kwargs: Kept, as settings of a stock processor that are of no use here.
    """

    model_input_names = ["pixel_values_videos", "video_grid_thw"]

    def __init__(
        self,
        size: Mapping[str, int] | None = None,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28, **(size or {})}
        if min_pixels is not None:
            self.size["shortest_edge"] = min_pixels
        if max_pixels is not None:
            self.size["longest_edge"] = max_pixels
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.patch_size = patch_size
        self.temporal_patch_size = temporal_patch_size
        self.merge_size = merge_size

    def preprocess(
        self, videos: Any, size: Mapping[str, int] | None = None, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Make patches.

        Args:
            videos: A clip `(frames, height, width, 3)` of uint8, a list of them, or a list of such lists.
            size: Overrides the processor's.
            return_tensors: As everywhere in transformers.
            **kwargs: Settings of a stock processor that are of no use here, e.g. how to sample frames.

        Returns:
            `pixel_values_videos` `(patches of all clips, 3 * temporal_patch_size * patch_size**2)` and `video_grid_thw`
            `(clips, 3)`: patches along time, height and width.
        """
        clips = [
            self._patches(np.asarray(clip), {**self.size, **(size or {})}) for clip in make_batched_videos(videos)
        ]
        data = {
            "pixel_values_videos": np.concatenate([patches for patches, _ in clips]),
            "video_grid_thw": np.array([grid for _, grid in clips], dtype=np.int64),
        }
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _patches(self, frames: np.ndarray, size: Mapping[str, int]) -> tuple[np.ndarray, tuple[int, int, int]]:
        edge, time, merge = self.patch_size, self.temporal_patch_size, self.merge_size
        height, width = smart_resize(
            frames.shape[1], frames.shape[2], edge * merge, size["shortest_edge"], size["longest_edge"]
        )
        last = ChannelDimension.LAST
        if (height, width) != frames.shape[1:3]:
            frames = np.stack(
                [
                    resize(
                        frame, (height, width), PILImageResampling.BICUBIC, data_format=last, input_data_format=last
                    )
                    for frame in frames
                ]
            )
        mean, std = (np.asarray(value, dtype=np.float32) for value in (self.image_mean, self.image_std))
        values = (frames.astype(np.float32) / np.float32(255) - mean) / std
        values = np.concatenate([values, np.repeat(values[-1:], -len(values) % time, axis=0)])
        grid = (len(values) // time, height // edge, width // edge)
        # Time, rows, columns of merged blocks, then of patches within a block: the tower merges neighbours in this order.
        blocks = values.reshape(
            grid[0], time, grid[1] // merge, merge, edge, grid[2] // merge, merge, edge, values.shape[-1]
        )
        patches = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
        return patches.reshape(int(np.prod(grid)), -1), grid


class OmniFramesProcessor(Qwen2_5OmniProcessor):
    """The processor of Qwen2.5-Omni with `FramesVideoProcessor` in the place of the one that needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Let our video processor pass; the library's own check needs a table that is absent without torchvision."""
        if argument_name == "video_processor" and isinstance(argument, VideoProcessorMixin):
            return VideoProcessorMixin
        return super().check_argument_for_proper_class(argument_name, argument)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        parts: dict[str, Any] = {
            "image_processor": AutoImageProcessor,
            "video_processor": FramesVideoProcessor,
            "feature_extractor": AutoFeatureExtractor,
            "tokenizer": AutoTokenizer,
        }
        return [parts[name].from_pretrained(pretrained_model_name_or_path, **kwargs) for name in cls.get_attributes()]


def load_mllm_processor(name: str, **kwargs: Any) -> Any:
    """Load the processor of a multimodal language model.

    Args:
        name: Folder or Hub name.
        **kwargs: `revision`, `token`, `cache_dir`.

    Raises:
        ImportError: If this family's processor cannot do without torchvision, and that is absent.
        OSError, ValueError: If there is no processor, or none that can be read.
    """
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(name, **kwargs)
    model_type = AutoConfig.from_pretrained(name, **kwargs).model_type
    if model_type in _OMNI:
        return OmniFramesProcessor.from_pretrained(name, **kwargs)
    try:
        return AutoProcessor.from_pretrained(name, **kwargs)
    except (ImportError, AttributeError, ValueError) as error:
        if isinstance(error, ValueError) and "torchvision" not in str(error):
            raise
        raise ImportError(
            f"The processor of {name!r} ({model_type}) needs torchvision, which is not installed: pip install torchvision "
            "(a build for the installed torch)."
        ) from error
