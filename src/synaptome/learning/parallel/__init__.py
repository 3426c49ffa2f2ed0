"""What several processes learn together, on torch.distributed: messages, orders, and rules of process 0."""
