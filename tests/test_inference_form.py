"""BatchNorm goes where it can, and the inference form is never that of yesterday's weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from effdense.inference_form import InferenceForm, fuse
from effdense.training.ema import ModelEma

BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS) and module.track_running_stats:
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 2.0, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


class Net(nn.Module):
    """Any modules, run as a function says, on images in 0..1."""

    def __init__(self, run: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images.to(next(self.parameters()).dtype) / 255)

    def fuse(self) -> Net:
        return fuse(self)


def conv(**changes: object) -> nn.Conv2d:
    return nn.Conv2d(3, **{"out_channels": 3, "kernel_size": 3, "padding": 1, **changes})


def norm(**changes: object) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(3, **changes)


def one_after_the_other(net: Net, x: Tensor) -> Tensor:
    for child in net.children():
        x = child(x)
    return x


def images(size: int = 16) -> Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


CASES = {  # name: (network, BatchNorms that stay)
    "in-turn": (Net(one_after_the_other, a=conv(bias=False), b=norm()), 0),
    "with-a-bias": (Net(one_after_the_other, a=conv(), b=norm()), 0),
    "in-a-sequence": (Net(one_after_the_other, a=nn.Sequential(nn.Sequential(conv()), norm(), nn.ReLU())), 0),
    "depthwise": (Net(one_after_the_other, a=conv(groups=3), b=norm()), 0),
    "transposed": (Net(one_after_the_other, a=nn.ConvTranspose2d(3, 3, 4, 2, 1), b=norm()), 0),
    "transposed-in-groups": (Net(one_after_the_other, a=nn.ConvTranspose2d(3, 3, 4, 2, 1, groups=3), b=norm()), 1),
    "not-affine": (Net(one_after_the_other, a=conv(), b=norm(affine=False)), 0),
    "without-statistics": (Net(one_after_the_other, a=conv(), b=norm(track_running_stats=False)), 1),
    "norm-first": (Net(one_after_the_other, b=norm(), a=conv()), 1),
    "norm-after-activation": (Net(one_after_the_other, a=conv(), r=nn.ReLU(), b=norm()), 1),
    "norm-after-norm": (Net(one_after_the_other, a=conv(), b=norm(), c=norm()), 1),
    "in-reverse-of-registration": (Net(lambda net, x: net.b(net.a(x)), b=norm(), a=conv()), 0),
    "used-twice": (Net(lambda net, x: net.b(y := net.a(x)) + y, a=conv(), b=norm()), 1),
    "one-conv-for-two-norms": (Net(lambda net, x: net.b(net.a(x)) + net.c(net.a(x)), a=conv(), b=norm(), c=norm()), 2),
    "one-norm-for-two-convs": (Net(lambda net, x: net.b(net.a(x)) + net.b(net.c(x)), a=conv(), c=conv(), b=norm()), 1),
    "its-shape-is-read": (Net(lambda net, x: net.b((y := net.a(x)).view(y.shape)), a=conv(), b=norm()), 1),
    "no-norm": (Net(one_after_the_other, a=conv()), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_norm_goes_only_where_nothing_else_reads_the_convolution(name: str) -> None:
    net, stay = CASES[name]
    fused = fuse(randomised(net))
    assert sum(isinstance(module, BATCH_NORMS) for module in fused.modules()) == stay
    with torch.no_grad():
        expected = net(images())
        torch.testing.assert_close(fused(images()), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_what_is_fused_is_left_as_it_is() -> None:
    net = Net(one_after_the_other, a=conv(), b=norm()).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fused = fuse(net)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not fused.training
    assert not any(parameter.requires_grad for parameter in fused.parameters())


def test_half_precision_stays_half_and_close() -> None:
    net = randomised(Net(one_after_the_other, a=conv(), b=norm())).to(torch.bfloat16)
    fused = fuse(net)
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected = net(images())
        torch.testing.assert_close(fused(images()), expected, rtol=0, atol=0.03 * float(expected.abs().max()))


def small() -> Net:
    return randomised(Net(one_after_the_other, a=conv(), b=norm()))  # type: ignore[return-value]


def step(optimizer: type[torch.optim.Optimizer], **arguments: object) -> Callable[[Net], object]:
    def change(net: Net) -> None:
        net(images()).sum().backward()
        optimizer(net.parameters(), lr=0.1, **arguments).step()  # type: ignore[call-arg]

    return change


def fused_group(net: Net) -> None:
    net(images()).sum().backward()
    torch.optim.SGD([{"params": list(net.parameters()), "fused": True}], lr=0.1).step()


def in_inference_mode(net: Net) -> None:
    with torch.inference_mode():
        net.a.weight.mul_(2)


def put_another(net: Net) -> None:
    net.a.weight = nn.Parameter(net.a.weight.detach() * 2)


def replace_a_module(net: Net) -> None:
    net.b = randomised(norm()).train().eval()
    net.b.running_mean.add_(1)


def average(net: Net) -> None:
    ema = ModelEma(small(), 0.5)
    ema.module = net
    ema.update(Net(one_after_the_other, a=conv(), b=norm()))


CHANGES = {
    "a-step": step(torch.optim.SGD),
    "a-foreach-step": step(torch.optim.AdamW, foreach=True),
    "a-fused-step": step(torch.optim.AdamW, fused=True),
    "a-step-of-a-fused-group": fused_group,
    "statistics": lambda net: net.train()(images()) is net.eval(),
    "loaded": lambda net: net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()}),
    "assigned": lambda net: net.load_state_dict({n: v + 1 for n, v in net.state_dict().items()}, assign=True),
    "inference-mode": in_inference_mode,
    "another-parameter": put_another,
    "another-module": replace_a_module,
    "another-type": lambda net: net.double(),
    "average": average,
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_follows_every_change_of_the_network(name: str) -> None:
    net = small()
    form = InferenceForm(net)
    before = form.network(images()).clone()
    assert form.network is form.network
    for _ in range(3):  # again and again: memory that was freed comes back under the same address
        CHANGES[name](net)
        with torch.no_grad():
            expected = net(images())
        found = form.network(images())
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert name == "another-type" or not torch.allclose(before, found)


def test_a_network_under_watch_runs_itself_so_that_the_watcher_sees_it() -> None:
    net = small()
    form = InferenceForm(net)
    assert form.network is not net
    handle = net.a.register_forward_hook(lambda *_: None)
    assert form.network is net
    handle.remove()
    assert form.network is not net


def test_a_network_whose_changes_are_not_counted_runs_itself() -> None:
    with torch.inference_mode():
        net = small()
    assert InferenceForm(net).network is net


def test_a_network_that_knows_no_other_form_runs_itself() -> None:
    net = nn.Sequential(conv(), norm())
    assert InferenceForm(net).network is net


def test_it_can_be_made_within_inference_mode_and_used_outside() -> None:
    form = InferenceForm(small())
    with torch.inference_mode():
        network = form.network
    assert network is not form.model
    assert not any(parameter.is_inference() for parameter in network.parameters())


def test_what_cannot_be_seen_is_taken_in_when_refreshed() -> None:
    net = small()
    form = InferenceForm(net)
    before = form.network(images())
    net.a.weight.data.mul_(2)
    torch.testing.assert_close(form.network(images()), before)
    form.refresh()
    with torch.no_grad():
        torch.testing.assert_close(form.network(images()), net(images()))


def test_threads_share_one_form_while_weights_change() -> None:
    net, made = small(), []
    fuse_once = net.fuse
    net.fuse = lambda: made.append(1) or fuse_once()  # type: ignore[method-assign, func-returns-value]
    form = InferenceForm(net)
    with ThreadPoolExecutor(8) as pool:
        assert len({id(one) for one in pool.map(lambda _: form.network, range(64))}) == 1
        assert len(made) == 1
        running = [pool.submit(lambda: [form.network(images()) for _ in range(50)]) for _ in range(7)]
        state = {name: value + 1 for name, value in net.state_dict().items()}
        while not all(one.done() for one in running):
            net.load_state_dict(state)
        assert all(one.result() for one in running)
    with torch.no_grad():
        torch.testing.assert_close(form.network(images()), net(images()))


def test_pickles_and_copies_take_the_network_alone() -> None:
    form = InferenceForm(small())
    before = len(pickle.dumps(form))
    expected = form.network(images())
    assert len(pickle.dumps(form)) == before
    for other in (pickle.loads(pickle.dumps(form)), copy.deepcopy(form)):
        torch.testing.assert_close(other.network(images()), expected)
        assert other.model is not form.model


def test_steps_of_fused_optimizers_are_counted_without_touching_their_tensors() -> None:
    """Else a graph that is kept over the step, which PyTorch allows for fused optimizers, could not run back again."""
    net = small()
    loss = net(images()).sum()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    loss.backward(retain_graph=True)
    versions = [parameter._version for parameter in net.parameters()]
    optimizer.step()
    assert [parameter._version for parameter in net.parameters()] == versions
    loss.backward()
