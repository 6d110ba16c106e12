"""What can a sample be listed by, and read from, besides files of videos in folders?"""
