"""What is trained: architectures, recipes and layouts, and what each layer holds, keeps and computes."""
