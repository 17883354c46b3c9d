"""What tests do with an open page."""


def state(page):
    return page.evaluate("fipo.state")


def token(page, t, index=0):
    return page.locator(f"#token-{index}-{t}")


def facts(page, name):
    return page.locator(f"#arithmetic dt:text-is('{name}') + dd").text_content()


def slide(page, name, value):
    page.eval_on_selector(f"#knob-{name}", "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", value)


def click_on_curve(page, place):
    """At this share of the first chart's width."""
    box = page.locator("#charts .plot").first.locator(".nsewdrag").first.bounding_box()
    at = box["x"] + place * box["width"], box["y"] + box["height"] / 2
    page.mouse.move(at[0] - 1, at[1])
    page.wait_for_timeout(300)
    page.mouse.click(*at)


def slowest_frame(page):
    """Milliseconds, while the stage is scrolled over a second and left alone for four."""
    return page.evaluate("""async () => {
        const stage = document.getElementById("stage");
        let [slowest, before] = [0, await new Promise(requestAnimationFrame)];
        for (const end = before + 5000; before < end; ) {
            if (before < end - 4000) stage.scrollTop += 300;
            const now = await new Promise(requestAnimationFrame);
            [slowest, before] = [Math.max(slowest, now - before), now];
        }
        return slowest;
    }""")
