"""A page on this machine to try a run's index on: give it an image, see what it finds."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from imgsim.extras.kept import pinned, read_run
from imgsim.images import candidates_and_queries, load_images
from imgsim.index import BuildLSHTable
from imgsim.opening import open_image

LARGEST = "30mb"  # of an upload
CSS = """
.gradio-container { max-width: 70rem !important; margin: auto }
.matches .caption-label { inset: auto 0 0 0 !important; max-width: none !important; border-radius: 0 !important;
  padding: .2rem .5rem !important; white-space: normal !important; text-align: center }
.matches .thumbnail-item img { box-sizing: border-box; padding-bottom: 2.8rem }
.matches .grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important }
footer { display: none !important }
@media (max-width: 640px) { .matches .grid-container { grid-template-columns: repeat(2, 1fr) !important } }
"""


class Answers:
    """A run's index with its candidates and a few queries as examples: images in, matches out, no page yet."""

    def __init__(self, folder):
        folder, kept = Path(folder), read_run(folder)
        if not (folder / "index").exists():
            raise ValueError(f"{str(folder)!r} holds no index; a point of a sweep keeps none, a run does.")
        from imgsim.encoder import load_encoder  # torch

        settings = pinned(kept)
        self.names = json.loads((folder / "images.json").read_text(encoding="utf-8"))["labels"]
        self.index = BuildLSHTable.load(folder / "index", load_encoder(settings["checkpoint"], dtype=settings["dtype"]))
        self.candidates, queries = candidates_and_queries(load_images(settings["dataset"]), settings["seed"])
        self.examples = [small(queries[int(row)]["image"]) for row in np.linspace(0, len(queries) - 1, 6)]
        self.title = f"{Path(str(settings['dataset'])).name} · {Path(str(settings['checkpoint'])).name}"

    def __call__(self, image, top_k: int, probes: int) -> tuple[list, str]:
        """The matches as (image, caption), and what the search did in words."""
        self.index.probes = int(probes)
        matches = self.index.query(image, int(top_k), verbose=False)
        pictures = []
        for i, label, overlap, cosine in zip(matches.ids, matches.labels, matches.overlap, matches.cosine, strict=True):
            name = self.names[label] if self.names and label >= 0 else f"image {i}"
            picture = small(self.candidates[int(i)]["image"])
            pictures.append((picture, f"{name} · cosine {cosine:.2f}, overlap {overlap:.1f}"))
        count, seen = len(self.index), matches.candidates
        return pictures, f"**{seen:,} of {count:,} candidates seen** ({seen / count:.0%}), {len(pictures)} shown."


def small(image, side: int = 320):
    """An image as it is shown: a file of the data set is never handed to the page itself."""
    image = open_image(image)
    image.thumbnail((side, side))
    return image


def page(answers: Answers):
    """The page as Gradio's Blocks."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    def answer(upload, top_k, probes):
        if not upload:
            return [], "Give it an image: drop a file, paste one, or take an example."
        try:
            return answers(upload, top_k, probes)
        except ValueError as error:  # without the name of the temporary file
            return [], f"That did not work: {re.sub(r'^.*cannot be read', 'the file cannot be read', str(error))}"

    with gradio.Blocks(title="imgsim", analytics_enabled=False) as blocks:
        gradio.Markdown(f"# Which images are like this one?\n{answers.title}, {len(answers.index):,} images")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                query = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Your image", height=260)
                # The file as it came: where it cannot be read, open_image says so in words.
                query.preprocess = lambda payload: payload.path if payload else None
                top_k = gradio.Slider(1, 24, 8, step=1, label="Matches shown (top_k)")
                probes = gradio.Slider(
                    0,
                    64,
                    answers.index.probes,
                    step=1,
                    label="Probes",
                    info="Further buckets looked up in every table: more of them, more candidates seen.",
                )
                gradio.Examples(answers.examples, query, label="Or take an example")
            with gradio.Column(scale=2, min_width=280):
                said = gradio.Markdown(answer(None, 1, 0)[1], elem_id="said")
                gallery = gradio.Gallery(
                    show_label=False, buttons=[], columns=4, height="auto", object_fit="contain", elem_classes="matches"
                )
        for part in (query, top_k, probes):
            part.change(answer, [query, top_k, probes], [gallery, said], api_name=False)
    return blocks


def launch(blocks, **settings) -> None:
    """Start the page; settings go to Gradio's launch: server_name, server_port, ..."""
    private = {"share": False, "enable_monitoring": False, "footer_links": [], "ssr_mode": False}
    blocks.launch(**private, quiet=True, max_file_size=LARGEST, css=CSS, **settings)


def serve(folder, port: int = 7860, block: bool = True):
    """Serve the page of a run on 127.0.0.1 until it is interrupted; returns its Blocks where it does not block."""
    if not find_spec("gradio"):
        raise ValueError("The page needs Gradio: pip install 'imgsim[demo]'.")
    blocks = page(Answers(folder))
    print(f"The page: http://127.0.0.1:{port} (Ctrl+C ends it)", flush=True)
    launch(blocks, server_name="127.0.0.1", server_port=port, prevent_thread_lock=not block)
    return blocks
