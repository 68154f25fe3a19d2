"""A model from a folder in Hugging Face format, or SmolLM2, which is converted into one."""

from pathlib import Path

import torch

from disagg.run.model import weights
from disagg.run.model.folder_checks import check_folder, count_weights
from disagg.run.model.generation_config import warn_of_settings
from disagg.run.model.loading import load_folder
from disagg.run.model.source import Progress, Source
from disagg.run.model.text import Text
from disagg.run.model.tokenizer_text import TokenizerText


class Folder(Source):
    """`name` is "smollm2", whose files are pinned, or a path."""

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__(name, dtype, device)
        self._pinned = name == "smollm2"
        self.folder = weights.smollm2_folder() if self._pinned else Path(name)

    def prepare(self, progress: Progress) -> None:
        if self._pinned:
            weights.check_smollm2(weights.convert_smollm2(progress))
        check_folder(self.folder)

    def text(self) -> Text:
        """Only SmolLM2's chat template may be rendered."""
        return TokenizerText(self.folder, chat=self._pinned)

    def module(self) -> torch.nn.Module:
        self._check_room(count_weights(self.folder), torch.device("cpu"))  # files are read there first
        with torch.random.fork_rng(devices=[]):  # modules draw weights that the files then replace
            return self._placed(load_folder(self.folder, self.dtype, pinned=self._pinned))

    def warn(self, module: torch.nn.Module, text: Text) -> None:
        warn_of_settings(self.folder, module, text)
