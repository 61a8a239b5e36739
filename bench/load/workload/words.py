"""Common English words, the raw material of prompts: one or two tokens each in any vocabulary."""

import re

WORDS = tuple(
    re.findall(
        r"\w+",
        """
    about above across act add after again age ago air all almost along also always among animal answer
    any appear area arm around art ask away baby back bad ball bank base bear beat beauty bed before
    begin behind believe below best better between big bird black blood blue board boat body bone book
    both bottom box boy branch bread break bright bring brother brown build burn business busy buy call
    calm camp capital car care carry case catch cause cell center century certain chair chance change
    character charge check child choose church circle city class clean clear climb clock close cloth
    cloud coast coat cold collect color come common compare complete condition connect consider contain
    control cook cool copy corn corner cost cotton count country course cover create cross crowd cry
    current cut dance danger dark daughter day dead deal dear death decide deep degree depend describe
    desert design develop die differ difficult dinner direct discuss distant divide doctor dog dollar
    door double down draw dream dress drink drive drop dry duck during each ear early earth ease east eat
    edge effect egg eight either electric element else end enemy energy engine enough enter equal even
    evening event ever every exact example except excite exercise expect experience eye face fact fair
    fall family famous far farm fast father favor fear feed feel feet few field fight figure fill final
    find fine finger finish fire first fish five flat floor flow flower fly follow food foot force
    foreign forest form forward four free fresh friend front fruit full fun game garden gas gather
    general gentle girl give glad glass gold good govern grand grass gray great green ground group grow
    guess guide hair half hand happen happy hard hat head hear heart heat heavy help high hill history
    hold hole home hope horse hot hour house huge human hundred hunt hurry ice idea imagine inch include
    increase industry insect instant iron island job join joy jump keep key kill kind king know lady lake
    land language large last late laugh law lead learn leave left leg length less letter level lie life
    lift light like line list listen little live long look lost loud love low machine main make man map
    mark market master match material matter mean measure
        """,
    )
)
