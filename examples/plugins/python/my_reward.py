"""A reward of your own: a number for each dialogue. Change it, and launch my_reward.toml again."""
from cohort_reward import reward, run


@reward
def short_answer(turns, item, context):
    answer = turns[-1]["content"].strip()
    brief = max(0.0, 1.0 - len(answer) / 40)
    return {"score": brief, "breakdown": {"characters": len(answer)}}


if __name__ == "__main__":
    run()
