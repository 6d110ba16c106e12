"""What does a queue shared by many ranks cost?"""
