# Components: compiler, runtime, torch.
