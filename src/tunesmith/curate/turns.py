"""Whose turn it is: what is wrong with the order of a conversation's messages and with the calls they hold."""

from tunesmith.rows import Message, kind, parse


def out_of_turn(messages: list[Message]) -> list[str]:
    """What is wrong with the order and the holding of messages, the completion last."""
    problems = []
    said = [m for m in messages if m.role != "system"]
    if any(m.role == "system" for m in messages[1:]):
        problems.append("a system message stands after the first message; it stands first or not at all")
    if said and said[0].role != "user":
        problems.append(f"begins with the {said[0].role}; a conversation begins with the user")
    for index, message in enumerate(messages):
        empty = not (message.content or "").strip()
        if message.role == "assistant":
            if empty and not message.tool_calls:
                problems.append(f"message {index}: the assistant says nothing and calls no tool")
        elif message.tool_calls:
            problems.append(f"message {index}: only the assistant calls tools")
        elif empty and message.role != "tool":
            problems.append(f"message {index}: the {message.role}'s content is empty")
        problems += [f"message {index}: {problem}" for problem in _bad_calls(message)]
    return problems + _out_of_order(messages)


def _out_of_order(messages: list[Message]) -> list[str]:
    problems = []
    open_calls: list[str | None] = []
    before = ""
    for index, message in enumerate(messages):
        if message.role == "tool":
            if not open_calls:
                problems.append(f"message {index}: a tool's result without a call")
            elif message.tool_call_id is None or None in open_calls:
                open_calls.pop(0)
            elif message.tool_call_id in open_calls:
                open_calls.remove(message.tool_call_id)
            else:
                problems.append(f"message {index}: tool_call_id {message.tool_call_id!r} answers no call before it")
        else:
            if open_calls:
                problems.append(f"message {index}: comes before {len(open_calls)} tool calls are answered")
            if message.role == before:
                problems.append(f"message {index}: the {message.role} speaks twice in a row; join the two")
            ids = [call.get("id") for call in message.tool_calls or ()]
            open_calls = [value if isinstance(value, str) else None for value in ids]
        before = message.role
    return problems


def _bad_calls(message: Message) -> list[str]:
    problems = []
    for index, call in enumerate(message.tool_calls or ()):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            problems.append(f"tool call {index} names no function")
            continue
        arguments = function.get("arguments", {})
        try:
            given = parse(arguments.encode()) if isinstance(arguments, str) else arguments
            if not isinstance(given, dict):
                problems.append(f"tool call {index}: arguments must be an object, not {kind(given)}")
        except ValueError as error:
            problems.append(f"tool call {index}: arguments are {error}")
    return problems
