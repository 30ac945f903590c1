import torch, math

print([n for n in dir(torch) if "sym_" in n])
from torch.utils._sympy import printers
import inspect

print(inspect.getsource(printers.PythonPrinter))
