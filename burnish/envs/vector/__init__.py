"""Many environments, stepped together by chunks of actions."""
