"""COCO with its captions (Chen et al. 2015), as raw records: five captions an image, in the order of their ids.

    DIR/annotations/captions_val2017.json        DIR/val2017/000000000139.jpg ...

Images stand in a folder of the split's name, or in `DIR` itself. The order is that of the image ids.
"""

from __future__ import annotations

from pathlib import Path

from sdd_jax.data.decode import is_file
from sdd_jax.data.sources.raw import RawRecord, inside, read_object


class CocoSource:
    """The images of a split that have captions.

    Raises:
        FileNotFoundError: no annotations, or images that they name are missing.
        ValueError: annotations of another form.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        root = Path(directory)
        self.title = f"{root}, {split}"
        file = root / "annotations" / f"captions_{split}.json"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such annotations; set config.data.split to val2017, train2014, ...")
        content = read_object(file)
        folder = root / split if (root / split).is_dir() else root
        try:
            names = {row["id"]: str(row["file_name"]) for row in content["images"]}
            captions: dict[int, list[tuple[int, str]]] = {}
            for row in content["annotations"]:
                captions.setdefault(row["image_id"], []).append((row["id"], str(row["caption"]).strip()))
            found = sorted(captions)
            self._paths = [inside(folder, names[image], str(file)) for image in found]
            self._captions = [tuple(text for _, text in sorted(captions[image])) for image in found]
        except KeyError as error:
            raise ValueError(f"{file} is not of COCO's captions: {error} is missing in it") from None
        except TypeError as error:
            raise ValueError(f"{file} is not of COCO's captions ({error}): download it again") from None
        missing = [path for path in self._paths if not is_file(path)]
        if missing or not found:
            what = f"{missing[0]}: no such image, one of {len(missing)} that" if missing else "no captions in what"
            raise FileNotFoundError(f"{what} {file} lists")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> RawRecord:
        return RawRecord(str(self._paths[index]), self._paths[index], self._captions[index])
