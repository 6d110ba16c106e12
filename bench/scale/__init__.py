"""How do very large queues behave?"""
