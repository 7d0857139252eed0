"""The papers' evaluations as files: which prompts and images, which measures, and one line of results a sample.

| protocol | benchmark | measures |
| --- | --- | --- |
| generation | a CSV of `caption` (and `file_name` or `id`); or COCO | FID, CLIP-T, ImageReward |
| inversion | a CSV of `file_name`, `caption`, and a folder of images | LPIPS, DINOv2, PSNR |
| editing | a CSV of `file_name`, `old_caption`, `edited_caption`, `blended_words`; or PIE-bench | CLIP, DINOv2, ... |
| restoration | a folder of degraded images and one of originals | FID, LPIPS, PSNR, SSIM |

`benchmarks` reads them, `log` keeps results so that an interrupted run continues, `measures` has the networks, each
from a weights file by path. Sources: Starodubcev et al. 2024 (iCD) and its released CSVs, Ju et al. 2024 (PIE-bench).
"""
