"""What tests do with an open page."""


def state(page):
    return page.evaluate("fipo.state")


def token(page, t, index=0):
    return page.locator(f"#token-{index}-{t}")


def facts(page, name):
    return page.locator(f"#arithmetic dt:text-is('{name}') + dd").text_content()


def slide(page, name, value):
    page.eval_on_selector(f"#knob-{name}", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)
