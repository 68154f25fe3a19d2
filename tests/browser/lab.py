"""JupyterLab on 127.0.0.1 in a temporary folder, and a notebook in it as a student works with it.

A further widget: write its cell with `lab.notebook(name, cells)`, open it with `Notebook`, then use `button`, `slider`
and `picture`.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from playwright.sync_api import Page, expect

WORKBENCH = Path(__file__).parents[2]


class Lab:
    """One server, ended by `close`. The token is made here and reaches it through the environment."""

    def __init__(self, root: Path):
        self.root, self.token = root, secrets.token_hex(16)
        (root / "config/labconfig").mkdir(parents=True)
        quiet = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
        (root / "config/labconfig/page_config.json").write_text(json.dumps(quiet))
        folders = {f"JUPYTER_{name}_DIR": str(root / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
        path = os.pathsep.join(filter(None, [str(WORKBENCH), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, **folders, "JUPYTER_TOKEN": self.token, "PYTHONPATH": path,
                       "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
                       "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces")}  # fmt: skip
        command = [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", "--port=0", "--no-browser", "--allow-root",
                   "--log-level=ERROR", f"--ServerApp.root_dir={root}"]  # fmt: skip
        self.log = (root / "log.txt").open("w")
        self._process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        try:
            self.url = self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> str:
        for _ in range(1200):
            found = list((self.root / "runtime").glob("jpserver-*.json"))
            if found and found[0].stat().st_size:
                return json.loads(found[0].read_text())["url"]
            if self._process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError("JupyterLab did not start within 120 s: " + (self.root / "log.txt").read_text()[-2000:])

    def notebook(self, name: str, cells: list[str]) -> str:
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(book, self.root / f"{name}.ipynb")
        return self.link(name)

    def chapter(self, name: str) -> str:
        """A copy of a notebook of the course."""
        shutil.copy(WORKBENCH / "notebooks" / f"{name}.ipynb", self.root)
        return self.link(name)

    def link(self, name: str) -> str:
        return f"{self.url}lab/tree/{name}.ipynb?reset&token={self.token}"

    def close(self):
        """The server ends its kernels itself when it is asked to stop."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.log.close()


class Notebook:
    def __init__(self, page: Page):
        self.page = page
        expect(page.locator(".jp-Notebook").first).to_be_visible(timeout=60_000)
        expect(page.locator("#jp-main-statusbar")).to_contain_text("| Idle", timeout=60_000)

    def run_all(self, until: str, within_s: float = 30):
        """Runs all cells, and waits for what their outputs show at the end."""
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        expect(self.output).to_contain_text(until, timeout=1e3 * within_s)

    @property
    def output(self):
        return self.page.locator(".jp-OutputArea").last

    def button(self, name: str):
        return self.output.get_by_role("button", name=name, exact=True)

    def press(self, name: str):
        """Tab leads to the button, Enter presses it."""
        for _ in range(40):
            if self.button(name).evaluate("node => node === document.activeElement"):
                break
            self.page.keyboard.press("Tab")
        else:
            raise AssertionError(f"Tab does not lead to {name}")
        self.page.keyboard.press("Enter")

    @property
    def slider(self):
        return self.output.locator(".noUi-handle").first

    def picture(self) -> str:
        return self.output.locator("img").first.get_attribute("src")

    def drag(self, handle, by: int):
        box = handle.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + by, y, steps=8)
        self.page.mouse.up()
