import subprocess
import sys
import textwrap


def in_a_fresh_process(code):
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_networks_import_beside_this_torch():
    found = in_a_fresh_process(
        """
        from peregrine.model.vision import torchvision_models
        m = torchvision_models()
        print(m.resnet18(weights=None).fc.out_features, torchvision_models() is m)
        """
    )
    assert found == "1000 True"


def test_networks_import_where_the_compiled_operators_are_missing():
    # A torchvision whose compiled library does not load, as PyPI's beside a CPU-only torch.
    found = in_a_fresh_process(
        """
        import importlib.abc, importlib.util, sys
        import torch
        load = torch.ops.load_library
        def refuse(path):
            if "torchvision" in str(path):
                raise OSError("undefined symbol")
            return load(path)
        torch.ops.load_library = refuse
        from peregrine.model.vision import torchvision_models
        net = torchvision_models().squeezenet1_1(weights=None).eval()
        print(tuple(net(torch.rand(1, 3, 64, 64)).shape))
        """
    )
    assert found == "(1, 1000)"
