"""Connection graphs: how they start (`graphs`) and how they change while a network learns (`evolution`)."""
