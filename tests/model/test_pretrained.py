import hashlib
import http.server
import threading
import time

import pytest
import torch

from peregrine.errors import ModelCorrupt, ModelError
from peregrine.model import pretrained, zoo


@pytest.fixture
def server():
    """A local web server; `pages` maps a path to its bytes, or to seconds to hang."""
    pages = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            if page is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", "10" if isinstance(page, float) else str(len(page)))
            self.end_headers()
            if isinstance(page, float):
                time.sleep(page)
            else:
                self.wfile.write(page)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", pages
    running.shutdown()
    thread.join()
    running.server_close()


def hashed(name, content):
    return f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def test_a_download_is_stored_whole_and_checked(tmp_path, server):
    url, pages = server
    content = b"weights" * 1000
    name = hashed("net", content)
    pages[f"/{name}"] = content
    pretrained._download(f"{url}/{name}", tmp_path / "cache" / name)
    pretrained._check_hash(tmp_path / "cache" / name)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == [name]


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / hashed("net", b"right")
    path.write_bytes(b"wrong")
    with pytest.raises(ModelCorrupt, match="damaged") as caught:
        pretrained._check_hash(path)
    assert str(path) in caught.value.fix


def test_what_is_not_there_is_unreachable(tmp_path, server):
    url, _ = server
    with pytest.raises(pretrained.Unreachable, match="Not Found"):
        pretrained._download(f"{url}/net.pth", tmp_path / "net.pth")
    with pytest.raises(pretrained.Unreachable, match="does not answer"):
        pretrained._download("http://127.0.0.1:1/net.pth", tmp_path / "net.pth")
    assert not list(tmp_path.iterdir())


def test_a_server_that_hangs_is_given_up(tmp_path, server, monkeypatch):
    url, pages = server
    pages["/net.pth"] = 5.0
    monkeypatch.setattr(pretrained, "_READ_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(pretrained.Unreachable, match="stopped sending"):
        pretrained._download(f"{url}/net.pth", tmp_path / "net.pth")
    assert time.monotonic() - start < 4
    assert not list(tmp_path.iterdir())


def test_offline_takes_the_cache_or_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PEREGRINE_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(pretrained.Unreachable, match="PEREGRINE_OFFLINE"):
        pretrained.state_dict(zoo.entry("squeezenet1_1"))
    module, words = zoo.build("squeezenet1_1")
    assert words.startswith("random, seed 0")
    assert "PEREGRINE_OFFLINE" in words
    with pytest.raises(ModelError, match="no pretrained weights") as caught:
        zoo.build("squeezenet1_1", weights="pretrained")
    assert "--weights random" in caught.value.fix
    # A file of that name in the cache is taken, once its hash is right.
    from peregrine.model.vision import torchvision_models

    url = torchvision_models().get_model_weights("squeezenet1_1").IMAGENET1K_V1.url
    cached = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(module.state_dict(), cached)
    with pytest.raises(ModelCorrupt, match="damaged"):
        pretrained.state_dict(zoo.entry("squeezenet1_1"))
