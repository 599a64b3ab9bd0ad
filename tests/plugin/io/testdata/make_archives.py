# SPDX-License-Identifier: Apache-2.0
# Makes the archives beside it with torch 2.11.0: python make_archives.py. The model's source is a string, so that the
# records that hold its path hold "model.py" wherever this runs.
import linecache

import torch

SOURCE = '''
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 4))
        self.bias = torch.nn.Parameter(torch.randn(4))
        self.register_buffer("scale", torch.arange(4, dtype=torch.float32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x, self.weight) * self.scale + self.bias + torch.ones([4])
'''

if __name__ == "__main__":
    linecache.cache["model.py"] = (len(SOURCE), None, SOURCE.splitlines(keepends=True), "model.py")
    exec(compile(SOURCE, "model.py", "exec"))
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Model().eval()), "scripted.pt", _extra_files={"note.txt": "kept"})
    state = {"weight": torch.arange(12, dtype=torch.float32).reshape(3, 4)}
    torch.save(state, "state_dict.pt")
    torch.save(state, "legacy_pickle.pt", _use_new_zipfile_serialization=False)
