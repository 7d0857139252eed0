"""Images with captions from wherever they are kept, as random-access sources of the step-indexed stream.

| source | `path` | records |
| --- | --- | --- |
| `folder` | a directory | its images, captioned by `metadata.jsonl`, `captions.csv`, or text files of the same name |
| `tar` | a shard, or a directory of some | the samples of webdataset shards |
| `tfds` | a prepared data set's directory, or a name of the catalogue | of `split`, on array_record or tfrecord files |
| `coco` | a directory of COCO | the images of `split` (`val2017`) with their captions |

A job needs two lines:

    source = open_source(data)                        # data: ImageData, the config section; errors appear here
    stream = make_stream(source, augmented(data, transform), ...)

A job whose data may be something else too inherits `ImageOptions` and opens `data.images()`, so that every key means
the same in every job.

A record is `{"image": uint8[h,w,3], "caption": str, "captions": tuple of str, "name": str, "position": int}`, the
picture upright and its shorter side `size`; square, unless `crop="random"`, which `augmented` carries out. What is
random comes from the stream's generator, so a sample depends on (seed, step) alone. Folders and tar
shards opened with `Partners` have a second image for each picture, read with it into `partner`.

Layers inside: a `RawSource` (`folder`, `tar`, `tfds`, `coco`) finds encoded bytes and captions and decodes nothing;
`images.ImageSource` decodes, filters and skips damaged records (`data.tolerance`), the same way for all.
"""

from sdd_jax.data.sources.images import IMAGE_OPTIONS, ImageData, ImageOptions, ImageSource, augmented, open_source
from sdd_jax.data.sources.raw import Partners

__all__ = ["IMAGE_OPTIONS", "ImageData", "ImageOptions", "ImageSource", "Partners", "augmented", "open_source"]
