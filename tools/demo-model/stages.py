"""What every training stage shares: a wall-clock budget, a learning-rate curve, EMA, checkpoints, a log.

A stage may run in several processes of one thread each (`torch.distributed`, gloo), which average their
gradients at every step: on a shared machine that loses much less than threads that meet in every operation.
"""

import os
import signal
import time

import torch
import torch.distributed as dist


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def workers():
    return dist.get_world_size() if dist.is_initialized() else 1


class Stage:
    """Runs for `minutes` of wall-clock time in total, over as many runs as it takes."""

    def __init__(self, work, name, minutes, modules, lr, ema_decay=0.999, lr_scale=None):
        """`lr_scale` gives the learning rate of some modules as a factor of `lr`. Frozen parameters are left out."""
        self.path = os.path.join(work, f"{name}.pt")
        self.log_path = os.path.join(work, "progress.log")
        self.name, self.budget, self.modules = name, minutes * 60, modules
        self.lr, self.ema_decay = lr, ema_decay
        groups = [{"params": [p for p in m.parameters() if p.requires_grad], "scale": (lr_scale or {}).get(k, 1.0)}
                  for k, m in modules.items()]
        self.params = [p for g in groups for p in g["params"]]
        self.opt = torch.optim.AdamW(groups, lr=lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        self.ema = {k: {n: v.detach().clone() for n, v in m.state_dict().items()} for k, m in modules.items()}
        self.before, self.step, self.sums, self.count = 0.0, 0, {}, 0
        if os.path.exists(self.path):
            state = torch.load(self.path, weights_only=True)
            for k, m in modules.items():
                m.load_state_dict(state["modules"][k])
            self.opt.load_state_dict(state["opt"])
            self.ema, self.before, self.step = state["ema"], state["seconds"], state["step"]
        if workers() > 1:
            for p in self.params:
                dist.broadcast(p.data, 0)
        self.stopped = False
        signal.signal(signal.SIGTERM, self._stop)  # stop, saved, at the end of this step
        self.spent, self.ticked = self.before, time.time()
        self.saved = self.logged = time.time()
        self.log(f"process {os.getpid()} (kill it to stop, saved) starts at step {self.step}, {self.before:.0f} s of {self.budget:.0f} s done, "
                 f"{sum(p.numel() for p in self.params) / 1e6:.2f} M parameters")

    def seconds(self):
        """Wall-clock seconds spent so far; a pause (a suspended process) counts for a minute at most."""
        now = time.time()
        self.spent, self.ticked = self.spent + min(60.0, now - self.ticked), now
        return self.spent

    def running(self):
        """False once the budget is spent, in all processes at the same step; saves then."""
        f = torch.tensor(2.0 if self.stopped else self.seconds() / self.budget)
        if workers() > 1:
            dist.broadcast(f, 0)
        self.fraction = f.item()
        if self.fraction < 1:
            return True
        self.save()
        if self.fraction == 2:
            raise SystemExit(f"{self.name}: stopped and saved")
        return False

    def _stop(self, *_):
        self.stopped = True

    def _average_gradients(self):
        grads = [p.grad for p in self.params if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= workers()
        for g, part in zip(grads, flat.split([g.numel() for g in grads])):
            g.copy_(part.view_as(g))

    def update(self, loss, **shown):
        """Backpropagates, steps the optimiser (trapezoid learning rate over wall-clock time) and the EMA."""
        k = min(1.0, (self.step + 1) / 100) * min(1.0, max(0.02, (1 - self.fraction) / 0.35))
        for g in self.opt.param_groups:
            g["lr"] = self.lr * k * g["scale"]
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        if workers() > 1:
            self._average_gradients()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.opt.step()
        self.step += 1
        if self.step % 4 == 0:  # four steps at once: the same average, a quarter of the work
            d = min(self.ema_decay, (1 + self.step) / (20 + self.step)) ** 4
            for k2, m in self.modules.items():
                mine = self.ema[k2]
                with torch.no_grad():
                    now = [(n, v) for n, v in m.state_dict().items() if v.is_floating_point()]
                    torch._foreach_lerp_([mine[n] for n, _ in now], [v for _, v in now], 1 - d)
        shown["loss"] = float(loss.detach())
        for n, v in shown.items():
            total, count = self.sums.get(n, (0.0, 0))
            self.sums[n] = (total + v, count + 1)
        self.count += 1
        if rank() == 0 and time.time() - self.logged > 20:
            mean = " ".join(f"{n}={v / k2:.4f}" for n, (v, k2) in self.sums.items())
            self.log(f"step {self.step} {self.seconds():.0f}s lr={self.lr * k:.2e} "
                     f"{self.count / (time.time() - self.logged):.2f} steps/s {mean}")
            self.logged, self.sums, self.count = time.time(), {}, 0
        if rank() == 0 and time.time() - self.saved > 150:
            self.save()

    def save(self):
        if rank() != 0:
            return
        state = {"modules": {k: m.state_dict() for k, m in self.modules.items()}, "opt": self.opt.state_dict(),
                 "ema": self.ema, "seconds": self.seconds(), "step": self.step}
        torch.save(state, self.path + ".tmp")
        os.replace(self.path + ".tmp", self.path)
        self.saved = time.time()

    def log(self, text):
        if rank() != 0:
            return
        line = f"{time.strftime('%H:%M:%S')} {self.name}: {text}"
        print(line, flush=True)
        with open(self.log_path, "a") as f:
            f.write(line + "\n")


def load_ema(work, name, **modules):
    """Loads a stage's averaged weights into modules; False if the stage has not been started."""
    path = os.path.join(work, f"{name}.pt")
    if not os.path.exists(path):
        return False
    state = torch.load(path, weights_only=True)
    for k, m in modules.items():
        m.load_state_dict(state["ema"][k])
    return True
